import logging

import pytest
import torch
from torch import nn

import sslpipe
from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features, extract, knn, linear
from sslpipe.evaluate.finetune_small import Images, finetune_small, labelled_images
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, pack
from tests.evaluate.test_finetune_small import Encoder

CPU = torch.device("cpu")


def points(labels, classes):
    """Features that tell the classes apart: one axis for each name."""
    labels = torch.tensor(labels)
    axes = torch.tensor([ord(name) - ord("a") for name in classes])
    features = torch.eye(8)[axes[labels] % 8] + 0.01 * torch.arange(len(labels))[:, None]
    return Features(features, labels, torch.arange(len(labels)), tuple(classes))


BANK = points([0, 1, 2, 3] * 5, "abcd")


def test_labels_are_joined_by_name_not_by_number():
    queries = points([0, 1, 2] * 4, "bcd")
    assert knn(BANK, queries, k=3).top1 == 1.0
    assert linear(BANK, queries).top1 == 1.0


def test_the_order_of_names_does_not_matter(caplog):
    assert knn(BANK, points([0, 1, 2, 3], "dcba"), k=3).top1 == 1.0
    assert not caplog.records


def test_what_only_one_side_has_is_said_and_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        result = knn(BANK, points([0, 1, 1, 2], "bxd"), k=3)
    assert (result.top1, result.queries) == (1.0, 2)
    assert "only the training set has a, c" in caplog.text
    assert "only the test set has x (2 samples, left out)" in caplog.text


def test_no_name_in_both_is_refused():
    for protocol in (knn, linear):
        with pytest.raises(SslpipeError, match=r"no class of the test set \(x, y\) .* \(a, b, c"):
            protocol(BANK, points([0, 1], "xy"))


def test_numbers_are_their_own_names():
    numbered = Features(torch.eye(3), torch.arange(3), torch.arange(3))
    named = Features(torch.eye(3), torch.arange(3), torch.arange(3), ("0", "1", "2"))
    assert knn(numbered, numbered, k=1).top1 == knn(named, numbered, k=1).top1 == 1.0
    with pytest.raises(SslpipeError, match="no class of the test set"):
        knn(BANK, Features(torch.ones(2, 8), torch.tensor([0, 1]), torch.arange(2)))


def test_a_label_beyond_the_names_is_refused():
    beyond = Features(torch.eye(8)[:3], torch.arange(3), torch.arange(3), ("a", "b"))
    with pytest.raises(SslpipeError, match="label 2 has no name among 2"):
        knn(BANK, beyond)


def test_fine_tuning_joins_by_name():
    generator = torch.Generator().manual_seed(1)
    shades = {name: torch.randn(3, 8, 8, generator=generator) for name in "abc"}

    def images(classes):
        labels = torch.arange(30) % len(classes)
        return Images(torch.stack([shades[classes[i]] for i in labels]), labels, tuple(classes))

    result = finetune_small(Encoder(), images("abc"), images("cb"), CPU, epochs=8, batch_size=10)
    assert result.top1 > 0.9
    with pytest.raises(SslpipeError, match="no class"):
        finetune_small(Encoder(), images("ab"), images("c"), CPU, epochs=1)


RECIPE = """\
stream: {batch_size: 4, order: sequential}
views: {global: {ops: [CenterCrop: {size: [8, 8]}]}}
"""


@pytest.fixture
def sets(tmp_path):
    """Two packed sets of plain colours: of folders a to d, and of b to d."""
    from PIL import Image

    for number, name in enumerate("abcd"):
        for copy in range(6):
            for top in ("train", "test") if name != "a" else ("train",):
                folder = tmp_path / top / name
                folder.mkdir(parents=True, exist_ok=True)
                colour = (60 * number, 255 - 60 * number, 40 * copy)
                Image.new("RGB", (8, 8), colour).save(folder / f"{copy}.png")
    for top in ("train", "test"):
        pack(tmp_path / top, tmp_path / f"{top}_shards", PackSettings(codec=ImageCodec()))
    return tmp_path / "train_shards", tmp_path / "test_shards"


class Colour(nn.Module):
    def forward(self, images_BCHW):
        return images_BCHW.mean((2, 3))[:, :2]


def test_manifests_name_the_classes_of_their_pipelines(sets, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = sslpipe.load_recipe(tmp_path / "recipe.yaml")
    train, test = (sslpipe.load(recipe, shards=path, device="cpu") for path in sets)
    with train, test:
        bank, queries = (extract(Colour(), pipe, CPU) for pipe in (train, test))
    assert knn(bank, queries).top1 == linear(bank, queries).top1 == 1.0
    for path, classes in zip(sets, (("a", "b", "c", "d"), ("b", "c", "d")), strict=True):
        with sslpipe.load(recipe, shards=path, device="cpu") as pipe:
            assert labelled_images(pipe).classes == classes
