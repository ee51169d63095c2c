import copy

import pytest
import torch
from torch import nn

from sslpipe.evaluate.finetune_small import Images, finetune_small, jittered, labelled_images

CPU = torch.device("cpu")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU())

    def forward(self, images):
        return self.layers(images)


def data(count, seed):
    """Three classes, told apart by their brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 1.0
    return Images(images, labels)


def test_it_learns_what_can_be_learned_and_leaves_the_encoder_alone():
    encoder = Encoder().requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    result = finetune_small(encoder, data(60, 1), data(90, 2), CPU, epochs=8, batch_size=20)
    assert result.top1 > 0.9
    assert "60 labels, 8 epochs" in result.protocol
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    noise = Images(data(60, 1).images, torch.arange(60).roll(1) // 20)
    assert finetune_small(Encoder(), noise, data(90, 2), CPU, epochs=8, batch_size=20).top1 < 0.6


def test_the_same_twice_and_no_global_draw():
    encoder = Encoder()
    state = torch.random.get_rng_state()
    a, b = (finetune_small(encoder, data(30, 1), data(90, 2), CPU, epochs=2).top1 for _ in range(2))
    assert a == b
    assert torch.equal(torch.random.get_rng_state(), state)


def test_few_are_of_every_class_and_all_of_a_small_one():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2])
    few = Images(torch.arange(21.0).view(21, 1, 1, 1), labels).few(3, seed=0)
    assert few.labels.tolist() == [0] * 3 + [1] * 3 + [2]
    assert len(few.images.unique()) == 7
    assert (labels[few.images.flatten().long()] == few.labels).all()


def test_jitter_moves_pixels_but_makes_none():
    images = torch.arange(1.0, 1 + 4 * 64).view(4, 1, 8, 8)
    torch.manual_seed(3)
    seen = [jittered(images) for _ in range(20)]
    for made in seen:
        assert made.shape == images.shape
        for row, image in zip(made, images, strict=True):
            assert set(row.flatten().tolist()) <= {0.0, *image.flatten().tolist()}
    assert len({made.sum().item() for made in seen}) > 3


def test_images_without_labels_are_left_out(toy_batches):
    made = labelled_images(toy_batches)
    assert made.labels.tolist() == [0, 1, 2]
    assert made.images.flatten(1).mean(1).tolist() == [0.0, 1.0, 2.0]


@pytest.fixture
def toy_batches():
    from sslpipe.batch import Batch

    def batch(values, labels):
        images = torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, -1, 3, 2, 2)
        empty = {"masks": {}, "hidden": {}, "targets": {}, "params": {}}
        uids = torch.arange(len(values))
        return Batch(
            views={"global": images}, labels=torch.tensor(labels), uids=uids,
            keys=("",) * len(values), valid=uids >= 0, epoch=0, step=0, **empty,
        )  # fmt: skip

    return [batch([0.0, 9.0], [0, -1]), batch([1.0, 2.0], [1, 2])]
