"""Zero-shot classification and retrieval across towers: against slow loops, and of a run."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslpipe.errors import SslpipeError, StateError
from sslpipe.evaluate.cross_retrieval import cross_retrieval, cross_retrieval_measures
from sslpipe.evaluate.subjects import open_subject
from sslpipe.evaluate.towers import all_captions, open_towers
from sslpipe.evaluate.zero_shot import (
    TEMPLATES,
    class_features,
    named_classes,
    prompts,
    read_templates,
    zero_shot,
    zero_shot_measures,
)
from sslpipe.export.trained import read_trained
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.recipe import parse_recipe
from sslpipe.shards import read_manifest
from sslpipe.train.loop import train_recipe

RECIPE = """\
modality: image
stream: {batch_size: 10, seed: 0}
views:
  global: {ops: [RandomResizedCrop: {size: [16, 16], scale: [0.5, 1.0]}, Normalize]}
  text: {modality: text, ops: [Captions: {length: 32, field: captions}]}
method: {clip: {dim: 16, text: {dim: 16, depth: 1, heads: 2}}}
train:
  backbone: {vit_tiny: {patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}}
  optimizer: {adamw: {lr: 1.0e-3, weight_decay: 0.1}}
  lr_batch: 10
  epochs: 2
run: {threads: 1, prefetch: 1, workers: 0}
"""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0).item()


# --- zero-shot


def test_zero_shot_is_a_loop_over_images_and_classes():
    images, texts = normal(40, 6), normal(9, 3, 6, seed=1)
    labels = torch.arange(40) % 9
    classes = []
    for each in texts:
        mean = sum(text / text.norm() for text in each) / len(each)
        classes.append(mean / mean.norm())
    right = {1: 0, 5: 0}
    for image, label in zip(images, labels.tolist(), strict=True):
        order = sorted(range(9), key=lambda c: -cosine(image, classes[c]))
        for k in right:
            right[k] += label in order[:k]
    found = zero_shot(images, class_features(texts), labels)
    assert (found.top1, found.top5, found.count) == (right[1] / 40, right[5] / 40, 40)
    first, fifth = zero_shot_measures(images, texts, torch.where(labels == 8, -1, labels))
    assert (first.chance, fifth.chance) == (1 / 9, 5 / 9)
    assert "36 images, 9 class names in 3 templates" in first.protocol


def test_class_means_are_normalised_again():
    """Naive error 27: of raw means, the class whose templates agree is longer and takes images."""
    agree, differ = torch.tensor([1.0, 0.0]), torch.tensor([[0.2, 1.0], [0.2, -1.0]])
    texts = torch.stack([torch.stack([agree, agree]), differ]).double()
    texts = texts + torch.tensor([[[0.0, 0.0]], [[0.0, 0.1]]])
    classes = class_features(texts)
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(2).double())
    image = classes[1:]
    raw = F.normalize(texts, dim=-1).mean(1)
    assert (image @ raw.T).argmax() == 0
    assert zero_shot(image, classes, torch.tensor([1])).top1 == 1.0
    # and a long text of a template weighs no more than a short one
    longer = texts * torch.tensor([[[1.0], [50.0]]])
    torch.testing.assert_close(class_features(longer), classes)


def test_who_maps_all_to_one_point_finds_nothing():
    same = torch.ones(6, 4)
    assert zero_shot(same, same[:3], torch.arange(6) % 3).top1 == 0.0
    owners = torch.arange(6)
    found = cross_retrieval(same, same, owners, ranks=(1, 5, 6))
    assert found == {"image to text": [0.0, 0.0, 1.0], "text to image": [0.0, 0.0, 1.0]}


def test_templates_have_a_place_for_the_class(tmp_path):
    assert all("{}" in template for template in TEMPLATES)
    assert prompts(["dog", "cat"], ["a {}", "{}s"]) == [["a dog", "dogs"], ["a cat", "cats"]]
    path = tmp_path / "t.txt"
    path.write_text("a photo of a {}.\n\n  {} \n")
    assert read_templates(path) == ("a photo of a {}.", "{}")
    for text, message in (("\n", "there is no line"), ("a dog\n", r"'a dog' has no \{\}")):
        path.write_text(text)
        with pytest.raises(SslpipeError, match=message):
            read_templates(path)
    with pytest.raises(SslpipeError, match=r"none\.txt: cannot be read"):
        read_templates(tmp_path / "none.txt")


def test_classes_need_names():
    assert named_classes(("red_apple", "pear"), "set") == ["red apple", "pear"]
    for names in ((), ("0", "1")):
        with pytest.raises(SslpipeError, match="set: its classes have no names"):
            named_classes(names, "set")


# --- retrieval


def test_recall_with_several_captions_is_a_loop():
    images, captions = normal(12, 3), normal(30, 3, seed=1)
    owners = torch.tensor([0, 0, 0, 0, 0, *range(1, 11), *range(10), *[3] * 5])
    captions[7] = captions[8]  # equal captions of two images
    ranks = (1, 3, 10)
    to_text, to_image = {k: [] for k in ranks}, {k: [] for k in ranks}
    for i in range(12):
        mine = [m for m in range(30) if owners[m] == i]
        if not mine:
            continue  # the last one has none
        best = max(cosine(images[i], captions[m]) for m in mine)
        nearer = [m for m in range(30) if owners[m] != i and cosine(images[i], captions[m]) >= best]
        for k in ranks:
            to_text[k].append(len(nearer) < k)
    for m in range(30):
        own = cosine(images[owners[m]], captions[m])
        nearer = [i for i in range(12) if i != owners[m] and cosine(images[i], captions[m]) >= own]
        for k in ranks:
            to_image[k].append(len(nearer) < k)
    found = cross_retrieval(images, captions, owners, ranks)
    for name, hits in (("image to text", to_text), ("text to image", to_image)):
        assert found[name] == pytest.approx([sum(h) / len(h) for h in hits.values()])
    assert len(to_text[1]) == 11


def test_any_caption_of_an_image_will_do():
    """Naive error: one caption an image, which then must be the right one."""
    images = normal(60, 8)
    captions = normal(60, 5, 8, seed=1)
    captions[:, 3] = images
    owners = torch.arange(60).repeat_interleave(5)
    five = cross_retrieval(images, captions.flatten(0, 1), owners, (1,))["image to text"]
    first = cross_retrieval(images, captions[:, 0], torch.arange(60), (1,))["image to text"]
    assert five == [1.0]
    assert first[0] < 0.2


def test_rows_at_once_change_nothing(monkeypatch):
    images, captions, owners = normal(20, 4), normal(50, 4, seed=1), torch.arange(50) % 20
    whole = cross_retrieval(images, captions, owners)
    monkeypatch.setattr("sslpipe.evaluate.cross_retrieval.ROWS", 7)
    assert cross_retrieval(images, captions, owners) == whole


def test_chance_is_that_of_random_rankings():
    owners = torch.arange(20).repeat_interleave(2)
    measures = cross_retrieval_measures(normal(20, 4), normal(40, 4, seed=1), owners, (1, 5))
    chances = {m.name: m.chance for m in measures}
    assert chances["text to image R@1"] == pytest.approx(1 / 20)
    assert chances["text to image R@5"] == pytest.approx(5 / 20)
    assert chances["image to text R@1"] == pytest.approx(2 / 40)
    missed = 38 / 40 * 37 / 39 * 36 / 38 * 35 / 37 * 34 / 36
    assert chances["image to text R@5"] == pytest.approx(1 - missed)


def test_nothing_to_find_is_said():
    with pytest.raises(SslpipeError, match="there is no caption"):
        cross_retrieval(normal(2, 3), normal(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(SslpipeError, match="there is no labelled image"):
        zero_shot(normal(0, 3), normal(2, 3), torch.zeros(0, dtype=torch.int64))


# --- of a run


@pytest.fixture(scope="module")
def trained(captioned, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "clip"
    return trained_in(out, parse_recipe(RECIPE, path="r.yaml"), captioned)


def trained_in(out, recipe, shards, *, max_steps=None, resume=False):
    """A run in a folder."""
    train_recipe(recipe, shards=shards, out=out, resume=resume, max_steps=max_steps, device="cpu")
    return out


def test_all_captions_of_all_samples_are_read(captioned, trained):
    pair = open_towers(open_subject(trained), untrained=False)
    (tokens, segments), uids = all_captions(pair, captioned)
    assert len(uids) == sum(1 + number % 4 for number in range(30))
    assert torch.equal(tokens != 0, segments[0] >= 0)
    texts = {Bytes().decode(row.numpy()) for row in tokens}
    assert {f"caption {k} of 007, a class1" for k in range(4)} <= texts
    assert len(texts) == len(uids)
    same, _ = pair.tokens(["Caption 3  of 007, a class1"])
    assert (tokens == same).all(1).sum() == 1


def test_eval_measures_both_towers_beside_untrained_ones(captioned, trained, run, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}\n")
    words = ["eval", trained, captioned, "--json", "--device", "cpu", "--protocols"]
    names = "zero_shot,cross_retrieval"
    rows = json.loads(run(*words, names, "--templates", templates)[0])
    assert set(rows) == {"trained", "untrained"}  # no protocol reads pixels
    for encoder in ("trained", "untrained"):
        assert set(rows[encoder]) == {
            "zero-shot top-1",
            *(f"{way} R@{k}" for way in ("image to text", "text to image") for k in (1, 5, 10)),
        }
        first = rows[encoder]["zero-shot top-1"]
        assert first["protocol"].endswith("30 images, 3 class names in 1 templates")
        assert first["chance"] == pytest.approx(1 / 3)
    assert read_manifest(captioned).classes == ("class0", "class1", "class2")


def test_the_towers_are_those_of_the_run(captioned, trained):
    pair = open_towers(open_subject(trained), untrained=True)
    weights = [m.text.wte.weight for m in pair.methods.values()]
    assert not torch.equal(*weights)
    content = torch.load(trained / "last.pt", weights_only=True)["method"]
    assert torch.equal(weights[0], content["text.wte.weight"])


def test_the_image_tower_is_exported_and_that_of_text_is_not(trained):
    assert read_trained(trained).branch == "image"
    with pytest.raises(SslpipeError, match=r"'text' is none; take --from image"):
        read_trained(trained, "text")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(captioned, trained, tmp_path):
    """Captions of the steps to come are those that they would have been."""
    recipe = parse_recipe(RECIPE, path="r.yaml")
    trained_in(tmp_path / "run", recipe, captioned, max_steps=2)
    trained_in(tmp_path / "run", recipe, captioned, resume=True)
    ends = [torch.load(p / "last.pt", weights_only=True) for p in (trained, tmp_path / "run")]
    assert ends[0]["step"] == ends[1]["step"] == 6
    for name, tensor in ends[0]["method"].items():
        assert torch.equal(tensor, ends[1]["method"][name]), name


def test_a_run_without_a_text_tower_is_named(captioned, tmp_path):
    changes = ["method={simclr: {projector: [8]}}", "views.global.count=2"]
    recipe = parse_recipe(RECIPE, path="r.yaml", overrides=changes)
    bare = recipe.model_copy(update={"views": {"global": recipe.views["global"]}})
    trained_in(tmp_path / "run", bare, captioned, max_steps=1)
    with pytest.raises(SslpipeError, match=r"last\.pt: its method, simclr, has no text tower"):
        open_towers(open_subject(tmp_path / "run"), untrained=False)
    elsewhere = replace(open_subject(tmp_path / "run"), name="timm:resnet18", checkpoint=None)
    with pytest.raises(SslpipeError, match=r"timm:resnet18: is no run of ours"):
        open_towers(elsewhere, untrained=False)


def test_a_changed_vocabulary_is_refused(trained, tmp_path):
    content = torch.load(trained / "last.pt", weights_only=True)
    content["stream"]["recipe"] += " vocabulary b2:other"
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(StateError, match="was trained with vocabulary b2:other, and the file"):
        open_subject(tmp_path)
