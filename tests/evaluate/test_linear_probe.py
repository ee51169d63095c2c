"""The probes against the papers' values, a loop written by hand, and a run that is killed."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sslpipe
from sslpipe.errors import SslpipeError, StateError
from sslpipe.evaluate import fitting, labelled_streams
from sslpipe.evaluate.fitting import PART, course_of
from sslpipe.evaluate.labelled_streams import (
    augmented,
    chosen_by_class,
    list_labelled,
    share_of_labels,
    split_of,
)
from sslpipe.evaluate.linear_probe import (
    DINO,
    DINO_BASE,
    MAE,
    MOCO,
    dino_of,
    head_of,
    linear_probe,
    read,
)
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe.names import Entry
from sslpipe.recipe.schema import ViewSection
from sslpipe.shards import PackSettings, pack
from sslpipe.train.run import lr_scale, plan_of

from .killed import whole_and_resumed
from .toy_sets import Means, pack_colours, small_vit, subject

CPU = torch.device("cpu")


OFFICIAL = [  # batch, lr of it, epochs, warm-up, schedule, milestones, optimizer
    (MAE, 16384, 6.4, 90, 10, "cosine", (), "lars"),
    (DINO, 1024, 0.004, 100, 0, "cosine_per_epoch", (), "sgd"),
    (DINO_BASE, 1024, 0.004, 100, 0, "cosine_per_epoch", (), "sgd"),
    (MOCO, 256, 30.0, 100, 0, "multistep", (60, 80), "sgd"),
]


@pytest.mark.parametrize("values", OFFICIAL, ids=lambda v: v[0].name)
def test_the_settings_are_the_official_ones(values):
    settings, batch, lr, epochs, warmup, schedule, milestones, optimizer = values
    course = course_of(
        settings.train, settings.batch_size, samples=1_281_167, epochs=None, batch_size=None
    )
    train = course.train
    assert (course.batch, train.epochs, train.warmup_epochs) == (batch, epochs, warmup)
    assert (train.schedule, train.milestones, train.gamma) == (schedule, milestones, 0.1)
    assert train.optimizer.name == optimizer
    given = train.optimizer.settings
    assert (given["momentum"], given["weight_decay"], train.final_lr) == (0.9, 0.0, 0.0)
    assert given["lr"] * lr_scale(train, course.part) == pytest.approx(lr)
    assert course.said == "official"


def test_what_the_heads_see_and_how_they_begin():
    seen = [(s.blocks, s.patches, s.normalised) for s in (MAE, DINO, DINO_BASE, MOCO)]
    assert seen == [(1, False, True), (4, False, False), (1, True, False), (0, False, False)]
    encoder, images = small_vit(), torch.rand(5, 3, 16, 16)
    tokens, inner = encoder.eval().tokens(images).detach(), []
    hooks = [b.register_forward_hook(lambda *a: inner.append(a[2])) for b in encoder.model.blocks]
    encoder.tokens(images)
    for hook in hooks:
        hook.remove()
    classes = [encoder.model.norm(layer)[:, 0].detach() for layer in inner]
    for settings, expected, words in (
        (MAE, tokens[:, 0], "class token"),
        (DINO, torch.cat(classes, 1), "class tokens of the last 3 blocks"),
        (DINO_BASE, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1), "and mean of the patches"),
        (MOCO, encoder(images).detach(), "pooled features"),
    ):
        columns, said = read(encoder, images, settings)
        torch.testing.assert_close(columns, expected)
        assert not columns.requires_grad
        assert words in said
    assert read(Means(), images, MAE)[1] == "pooled features"
    assert dino_of(encoder) is dino_of(Means()) is DINO
    assert dino_of(small_vit(embed_dim=768)) is DINO_BASE


def test_the_head_of_mae_has_its_batch_norm(colours):
    split = split_of(*colours, seed=0)
    before = torch.random.get_rng_state()
    (norm, linear), seen = head_of(subject(small_vit()), split, MAE, CPU, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (norm.eps, norm.affine, seen) == (1e-6, False, "class token")
    assert linear.weight.shape == (3, 16)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.4)
    assert not linear.bias.any()


def lars_by_hand(parameters, gradients, momenta, lr):
    """Of facebookresearch/mae, written anew: trust ratio 0.001 |w| / |g| for matrices only."""
    for p, g, m in zip(parameters, gradients, momenta, strict=True):
        if p.ndim > 1:
            g = g * 0.001 * p.norm() / g.norm()
        m.mul_(0.9).add_(g)
        p.sub_(lr * m)


def sgd_by_hand(parameters, gradients, momenta, lr):
    for p, g, m in zip(parameters, gradients, momenta, strict=True):
        m.mul_(0.9).add_(g)
        p.sub_(lr * m)


@pytest.mark.parametrize(
    ("settings", "update"), [(MAE, lars_by_hand), (DINO, sgd_by_hand), (MOCO, sgd_by_hand)]
)
def test_two_steps_are_those_of_a_loop_by_hand(colours, settings, update, tmp_path, monkeypatch):
    """Two batches of 45 of one epoch, each read in parts."""
    monkeypatch.setattr(fitting, "PART", 15)
    toy = subject(Means())
    toy.encoder.norm.running_mean += 0.1
    frozen = copy.deepcopy(toy.encoder.state_dict())
    state = tmp_path / "probe"
    linear_probe(
        toy, *colours, settings, device="cpu", seed=5, epochs=1, batch_size=45, state=state
    )
    made = torch.load(state, weights_only=True)
    assert made["step"] == 2

    split = split_of(*colours, seed=5)
    head, _ = head_of(toy, split, settings, CPU, seed=5)
    momenta = [torch.zeros_like(p) for p in head.parameters()]
    recipe = augmented(
        toy.recipe, batch_size=15, seed=5, remainder="wrap", resample=settings.resample
    )
    with sslpipe.load(recipe, shards=colours[0], device="cpu") as pipe:
        batches = list(pipe)
    course = course_of(settings.train, settings.batch_size, samples=90, epochs=1, batch_size=45)
    peak = settings.train.optimizer.settings["lr"] * 45 / 256
    probe = torch.optim.SGD(head.parameters(), lr=peak, momentum=0.9)
    plan = plan_of(course.train, 6, probe)
    for step in range(2):
        part = batches[3 * step : 3 * step + 3]
        images = torch.cat([batch.views["global"][0] for batch in part])
        labels = torch.cat([batch.labels for batch in part])
        x = toy.encoder.eval()(images).detach()
        if settings is MAE:
            var, mean = torch.var_mean(x, 0, correction=0)
            x = (x - mean) / (var + 1e-6).sqrt()
        gradients = torch.autograd.grad(F.cross_entropy(head[1](x), labels), head[1].parameters())
        with torch.no_grad():
            update(list(head[1].parameters()), gradients, momenta, plan.lr_at(step))
    for name in ("1.weight", "1.bias"):
        torch.testing.assert_close(made["module"][name], head.state_dict()[name].detach())
    assert all(torch.equal(frozen[k], v) for k, v in toy.encoder.state_dict().items())


def test_it_learns_and_says_what_differs(colours):
    before = torch.random.get_rng_state()
    (measure,) = linear_probe(
        subject(Means()), *colours, MOCO, device="cpu", epochs=5, batch_size=30
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert measure.value > 0.8
    assert measure.chance == pytest.approx(1 / 3)
    for part in (
        "official but 5 of 100 epochs and 30 of 256 samples a batch",
        "SGD of lr 30 x 30/256",
        "x 0.1 at epochs 3, 4",
        "pooled features",
        "90 samples",
        "30 test samples",
    ):
        assert part in measure.protocol, part


def test_noise_is_at_chance(colours, tmp_path):
    """Without a test set: held out samples are not learned from."""

    class Noise(nn.Module):
        def forward(self, images):
            sums = images.sum((1, 2, 3))
            return torch.frac(sums[:, None] * torch.arange(1.0, 41.0) * 1000)

    (measure,) = linear_probe(
        subject(Noise()), colours[0], settings=MOCO, device="cpu", epochs=2, batch_size=32
    )
    assert measure.value < 0.65
    assert "72 samples" in measure.protocol
    assert "18 test samples (held-out fifth keyed by seed 0)" in measure.protocol


def test_a_killed_run_goes_on_to_the_same_head(colours, tmp_path, monkeypatch):
    def run(state):
        linear_probe(
            subject(small_vit()), *colours, MAE, device="cpu", epochs=3, batch_size=25, state=state
        )

    whole, resumed = whole_and_resumed(run, tmp_path, monkeypatch, epoch=3)
    assert resumed["step"] == whole["step"] == 9
    assert all(torch.equal(whole["module"][k], v) for k, v in resumed["module"].items())
    assert whole["module"]["0.num_batches_tracked"] == 9
    with pytest.raises(StateError, match=r"DINO.*remove it"):
        linear_probe(
            subject(small_vit()), *colours, DINO, device="cpu", epochs=3, batch_size=25,
            state=tmp_path / "whole",
        )  # fmt: skip
    (tmp_path / "whole").write_bytes(b"no")
    with pytest.raises(StateError, match="damaged"):
        run(tmp_path / "whole")


def test_workers_change_nothing(colours):
    toy = subject(Means())
    recipe = toy.recipe.model_copy(
        update={"run": toy.recipe.run.model_copy(update={"workers": 1, "threads": 2})}
    )
    one, other = (
        linear_probe(s, colours[0], None, MOCO, device="cpu", epochs=1, batch_size=24)[0]
        for s in (toy, replace(toy, recipe=recipe))
    )
    assert one == other


def test_copies_are_told_and_never_held_out_alone(colours, tmp_path):
    assert split_of(colours[0], colours[0], seed=0).said.endswith("90 copies of training samples")
    assert split_of(*colours, seed=0).said == "test set"
    doubled = tmp_path / "images"
    for name in ("one", "two"):
        pack_colours(tmp_path / name, tmp_path / f"{name}.packed", 30)
        for path in sorted((tmp_path / name).rglob("*.png")):
            copied = doubled / path.parent.name / f"{name}-{path.name}"
            copied.parent.mkdir(parents=True, exist_ok=True)
            path.rename(copied)
    pack(doubled, tmp_path / "doubled", PackSettings(codec=ImageCodec()))
    split = split_of(tmp_path / "doubled", None, seed=0)
    assert (len(split.train), len(split.test)) == (48, 12)
    assert not set(split.train.contents.tolist()) & set(split.test.contents.tolist())


def test_classes_are_matched_by_name(colours, tmp_path):
    """A test set of two classes, whose numbers are others."""
    test = pack_colours(tmp_path / "c", tmp_path / "two", 20, classes=("green", "red"), seed=3)
    (measure,) = linear_probe(
        subject(Means()), colours[0], test, MOCO, device="cpu", epochs=5, batch_size=30
    )
    assert measure.value > 0.8
    assert "only the training set has blue" in measure.protocol


def test_a_batch_is_at_most_the_set_and_whole_parts():
    course = course_of(MAE.train, 16384, samples=1000, epochs=None, batch_size=None)
    assert (course.batch, course.part) == (896, PART)
    assert course.said == "official but 896 of 16384 samples a batch"
    assert course_of(MAE.train, 16384, samples=50, epochs=9, batch_size=None).batch == 50
    assert (
        course_of(MAE.train, 512, samples=600, epochs=9, batch_size=None).train.warmup_epochs == 1
    )
    with pytest.raises(SslpipeError, match="epochs = 0"):
        course_of(MAE.train, 16384, samples=50, epochs=0, batch_size=None)


def test_a_stream_of_some_samples_has_these_alone(colours):
    samples = list_labelled(colours[0])
    few = share_of_labels(samples, 0.2, seed=1)
    assert few.labels.bincount().tolist() == [6, 6, 6]
    recipe = augmented(
        subject(Means()).recipe, batch_size=9, seed=0, remainder="wrap", resample="bilinear"
    )
    with sslpipe.load(recipe, shards=few.restricted(), device="cpu") as pipe:
        assert pipe.source.identity != list_labelled(colours[0]).manifest.fingerprint
        epochs = [[uid for batch in pipe for uid in batch.uids.tolist()] for _ in range(3)]
    for uids in epochs:
        assert sorted(uids) == sorted(few.uids.tolist())
    assert epochs[0] != epochs[1]


def test_draws_by_class_follow_the_ids_and_not_the_order():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    ids = torch.randint(-(2**62), 2**62, (400,), generator=generator)
    ids[200:300] = ids[:100]  # copies, some of another label

    def chosen(order, seed=0):
        mask = chosen_by_class(labels[order], ids[order], lambda n: n // 3, seed=seed, stream="x")
        return set(zip(labels[order][mask].tolist(), ids[order][mask].tolist(), strict=True))

    base = chosen(torch.arange(400))
    assert chosen(torch.randperm(400, generator=generator)) == base
    assert chosen(torch.arange(400), seed=1) != base
    mask = chosen_by_class(labels, ids, lambda n: n // 3, seed=0, stream="x")
    for label in range(4):
        here = labels == label
        assert len(ids[mask & here].unique()) == len(ids[here].unique()) // 3
        assert not set(ids[mask & here].tolist()) & set(ids[~mask & here].tolist())


def test_sets_that_cannot_be_learned(colours, tmp_path):
    one = pack_colours(tmp_path / "one", tmp_path / "packed", 6, classes=("red",))
    with pytest.raises(SslpipeError, match=r"5 training samples are of 1 class\(es\)"):
        split_of(one, None, seed=0)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((tmp_path / "one" / "red").iterdir())):
        path.rename(flat / f"{number}.png")
    pack(flat, tmp_path / "unlabelled", PackSettings(codec=ImageCodec()))
    with pytest.raises(SslpipeError, match="none of 6 samples has a label"):
        linear_probe(subject(Means()), tmp_path / "unlabelled")


def test_views_that_are_no_pictures_are_refused(monkeypatch):
    toy = subject(Means())
    sounds = {"global": ViewSection(ops=(Entry("Window"),))}
    made = toy.recipe.model_copy(update={"modality": "sound", "views": sounds})
    monkeypatch.setattr(labelled_streams, "central", lambda recipe: made)
    with pytest.raises(SslpipeError, match=r"modality = 'sound' is evaluated on Window"):
        augmented(made, batch_size=1, seed=0, remainder="wrap", resample="bilinear")


def test_a_rate_that_does_not_suit_is_told(colours):
    class Huge(Means):
        def forward(self, images):
            return super().forward(images) * 1e30

    with pytest.raises(SslpipeError, match=r"MoCo linear probe.*not finite after epoch"):
        linear_probe(subject(Huge()), *colours, MOCO, device="cpu", epochs=3)
