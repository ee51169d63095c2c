"""Fine-tuning on few labels, in small: no protocol of a paper, but minutes instead of days.

The whole encoder and a linear head learn a few labelled images per class, in memory, with random
flips and shifts of an eighth: AdamW, layers alike, cosine to 0. Compare with the same from scratch.
It tells what pretraining is worth where features are not linearly readable; finetune.py has the
official settings.
"""

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch
from ..encoders.monitors import evaluating
from ..errors import SslpipeError
from ..train.world import keyed
from .classes import Names, class_names, join
from .features import first_view

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images (N, C, H, W) and their class ids (N,) int64, on the CPU.

    `classes`: the names of ids 0, 1, ...; empty: the ids are plain numbers.
    """

    images: Tensor
    labels: Tensor
    classes: Names = ()

    def few(self, per_class: int, *, seed: int) -> "Images":
        """`per_class` random images of every class, or all that it has."""
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        rows = [shuffled[self.labels[shuffled] == c][:per_class] for c in torch.unique(self.labels)]
        keep = torch.cat(rows)
        return self.of(keep)

    def of(self, rows: Tensor) -> "Images":
        """Some of the images, by number or by a mask."""
        return Images(self.images[rows], self.labels[rows], self.classes)


@dataclass(frozen=True, slots=True)
class FineTuned:
    """Top-1 accuracy in [0, 1] and how it was found."""

    top1: float
    protocol: str


def labelled_images(batches: Iterable[Batch], group: str = "global") -> Images:
    """The labelled images of all batches, in memory.

    Raises:
        SslpipeError: none has a label.
    """
    pairs = [(first_view(batch, group).cpu(), batch.labels.cpu()) for batch in batches]
    images, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    if not (labels >= 0).any():
        raise SslpipeError("fine-tuning: no sample has a label; pack the shards from class folders")
    return Images(images, labels, class_names(batches)).of(labels >= 0)


def matched(train: Images, test: Images) -> Images:
    """The test images with the class ids of the training set; those of other classes left out.

    What only one of the two has is logged.

    Raises:
        SslpipeError: no class name is in both.
    """
    joined = join(train, test)
    if joined.said:
        log.warning("fine-tuning: %s", joined.said)
    return Images(test.images, joined.labels, joined.classes).of(joined.labels >= 0)


def finetune_small(
    encoder: nn.Module,
    train: Images,
    test: Images,
    device: torch.device,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> FineTuned:
    """Train a copy of `encoder` and a head on `train`, count right answers on `test`.

    Classes are matched by name; test images of a class that `train` does not name are left out.

    Raises:
        SslpipeError: no class name is in both.
    """
    test = matched(train, test)
    size = min(batch_size, len(train.labels))
    with keyed("finetune", seed=seed, device=device):  # for drop path
        model = with_head(encoder, train).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
        fit_model(model, optimizer, train, epochs=epochs, size=size, device=device)
    how = (
        f"small fine-tuning: {len(train.labels)} labels, {epochs} epochs of AdamW (lr {lr:g}, "
        f"batch {size})"
    )
    return FineTuned(accuracy(model, test, device), how)


def fit_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Images,
    *,
    epochs: int,
    size: int,
    device: torch.device,
) -> None:
    """All epochs; what does not fill the last batch of one is left out of it."""
    count = len(train.labels) // size * size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (count // size))
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(train.labels))[:count], size):
            images = jittered(train.images[rows]).to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), train.labels[rows].to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def with_head(encoder: nn.Module, train: Images) -> nn.Sequential:
    """A copy of the encoder, trainable, below a head that starts at zero."""
    twin = copy.deepcopy(encoder).requires_grad_(True)
    with evaluating(twin.cpu()):
        dim = twin(train.images[:1]).shape[1]
    head = nn.Linear(dim, int(train.labels.max()) + 1)
    # at zero, so that neither a seed nor the scale of the features decides how it starts
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(twin, head)


def jittered(images_BCHW: Tensor) -> Tensor:
    """Flip half of the images, and shift the whole batch by up to an eighth of its height."""
    flip_B = torch.rand(len(images_BCHW)) < 0.5
    images = torch.where(flip_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)
    reach = images.shape[-2] // 8
    down, right = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, (reach,) * 4)[..., down : down + height, right : right + width]


def accuracy(model: nn.Module, test: Images, device: torch.device) -> float:
    """Give the share of test images, in [0, 1], whose highest score is that of their label."""
    right = 0
    with evaluating(model):
        for rows in torch.split(torch.arange(len(test.labels)), 256):
            guess = model(test.images[rows].to(device)).argmax(1).cpu()
            right += int((guess == test.labels[rows]).sum())
    return right / len(test.labels)
