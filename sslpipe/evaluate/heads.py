"""The linear probe of DINOv2 on cached features: a grid of heads trained by SGD in one pass.

Oquab et al. 2023, eval/linear.py: 13 learning rates times the class tokens of the last 1 or 4
blocks times without and with the mean of the patch tokens. Two deviations: the features are cached,
so there is no augmentation; and the head is chosen on a fifth of the training labels and then
trained again on all, where the official number is the best on the test set.
Letters: B samples of a batch, D columns of an input with a last one of ones, H heads (learning
rates) of an input, K classes.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..device.handoff import find_device
from ..errors import SslpipeError
from .features import Features, matched
from .results import Measure
from .subsets import copies_said, distinct, guessing, held_out, in_order, random_words

HALF = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)

Weights = Mapping[str, Tensor]  # of an input, by its name: (H, K, D)


@dataclass(frozen=True, slots=True)
class HeadsSettings:
    """The official values: ten "epochs" of 1,250 iterations, lr times batch / 256, cosine to 0.

    `blocks`: of how many last blocks the class tokens are joined. `device`: where heads are
    trained, "cpu" or "cuda".
    """

    lrs: tuple[float, ...] = (*HALF, 0.1)
    blocks: tuple[int, ...] = (1, 4)
    batch_size: int = 128
    iterations: int = 12_500
    momentum: float = 0.9
    held_out: float = 0.2
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Head:
    """One of the grid, with its accuracy in [0, 1] on the held-out training labels."""

    inputs: str
    lr: float
    chosen_by: float


def heads(
    train: Features, test: Features | None = None, settings: HeadsSettings = HeadsSettings()
) -> tuple[Measure, ...]:
    """Top-1 of the head that is best on held-out training labels, trained again on all of them.

    Features without blocks have one input, `pooled`, or two if the mean of patches is known.
    Without a test set, a fifth of each class is kept for the test, and exact copies are left out.

    Raises:
        SslpipeError: no labels, fewer than two classes, no class name in both, no class with
            enough samples to hold one out, a feature that is not finite, or no such device.
    """
    train, said = in_order(train, "heads"), "tested on"
    if test is None:
        once = distinct(train)
        kept = held_out(once, settings.held_out, seed=settings.seed, purpose="heads/test")
        train, test, said = once.at(~kept), once.at(kept), "tested on held-out"
    tested = matched(train, test.labelled())
    check_tokens(train)
    check_tokens(tested)
    head, count = choose_head(train, settings)
    one = replace(settings, lrs=(head.lr,))
    weights = {head.inputs: trained(train, one)[head.inputs]}
    ((_, right),) = accuracies(weights, tested, one)
    how = (
        f"best of {count} heads on {settings.held_out:.0%} of the training labels ({head.inputs}, "
        f"lr {head.lr:g} x batch/256), SGD (momentum {settings.momentum:g}, cosine, "
        f"{settings.iterations} iterations of {batch_size(train, settings)}), without "
        f"augmentation; trained on {len(train.labels)} samples, {said} {len(tested.labels)}"
        f"{copies_said(train, tested)}"
    )
    return (Measure("heads top-1", right[0], how, chance=guessing(train.labels, tested.labels)),)


def choose_head(train: Features, settings: HeadsSettings) -> tuple[Head, int]:
    """Train the whole grid on a part of `train`, and take the best on the rest; count them too.

    Of equally good ones the first: fewer blocks, without patches, the smaller lr.

    Raises:
        SslpipeError: no class has two samples.
    """
    held = held_out(train, settings.held_out, seed=settings.seed, purpose="heads/held-out")
    if not held.any():
        raise SslpipeError(
            f"heads: no class of {len(held)} training samples has two, to choose a head by one of "
            "them; evaluate more samples"
        )
    weights = trained(train.at(~held), settings)
    grid = [
        Head(name, lr, share)
        for name, shares in accuracies(weights, train.at(held), settings)
        for lr, share in zip(settings.lrs, shares, strict=True)
    ]
    return max(grid, key=lambda head: head.chosen_by), len(grid)


def inputs(features: Features, settings: HeadsSettings) -> dict[str, Tensor]:
    """What heads look at, by name: (B, D), with a last column of ones for the bias."""
    found = {"pooled": features.features}
    if len(features.blocks):
        most = features.blocks.shape[1]
        depths = dict.fromkeys(min(depth, most) for depth in settings.blocks)
        found = {f"last {n} block(s)": features.blocks[:, -n:].flatten(1) for n in depths}
    if len(features.patches):
        with_patches = {
            f"{name} + mean of patches": torch.cat((x_BD, features.patches), dim=1)
            for name, x_BD in found.items()
        }
        found |= with_patches
    ones_B1 = features.features.new_ones(len(features.labels), 1)
    return {name: torch.cat((x_BD, ones_B1), dim=1) for name, x_BD in found.items()}


def trained(train: Features, settings: HeadsSettings) -> Weights:
    """All heads of all inputs, trained together: the gradient of each is its own."""
    classes = int(train.labels.max()) + 1
    there = on_device(train, settings)
    weights = first_weights(inputs(there.at(torch.arange(1)), settings), classes, settings)
    speeds = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    size = batch_size(train, settings)
    lrs_H1 = torch.tensor(settings.lrs, device=there.labels.device)[:, None] * size / 256
    for step, rows in enumerate(itertools.islice(batches(train, settings), settings.iterations)):
        batch = there.at(rows.to(there.labels.device))
        truth_B1K = one_hot(batch.labels, classes)[:, None]
        cosine = (1 + math.cos(math.pi * step / settings.iterations)) / 2
        for name, x_BD in inputs(batch, settings).items():
            weight, speed = weights[name], speeds[name]
            slope_BHK = (logits(weight, x_BD).softmax(-1) - truth_B1K) / size
            speed.flatten(0, 1).addmm_(slope_BHK.flatten(1).T, x_BD, beta=settings.momentum)
            weight.flatten(1).addcmul_(speed.flatten(1), lrs_H1, value=-cosine)
    return weights


def first_weights(
    x: Mapping[str, Tensor], classes: int, settings: HeadsSettings
) -> dict[str, Tensor]:
    """Normal of deviation 0.01, with a bias of 0; the same on every device."""
    generator = torch.Generator().manual_seed(settings.seed)
    made = {}
    for name, x_BD in x.items():
        shape = len(settings.lrs), classes, x_BD.shape[1]
        weight_HKD = torch.randn(shape, generator=generator) * 0.01
        weight_HKD[..., -1] = 0
        made[name] = weight_HKD.to(x_BD.device)
    return made


def logits(weight_HKD: Tensor, x_BD: Tensor) -> Tensor:
    """(B, H, K), in one product."""
    return (x_BD @ weight_HKD.flatten(0, 1).T).reshape(-1, *weight_HKD.shape[:2])


def accuracies(
    weights: Weights, tested: Features, settings: HeadsSettings
) -> list[tuple[str, list[float]]]:
    """The share of right answers of every head of every input; one that diverged has none."""
    there = on_device(tested, settings)
    hits = {name: weight.new_zeros(len(weight)) for name, weight in weights.items()}
    for rows in torch.split(torch.arange(len(tested.labels), device=there.labels.device), 4096):
        chunk = there.at(rows)
        x = inputs(chunk, settings)
        for name, weight_HKD in weights.items():
            logits_BHK = logits(weight_HKD, x[name])
            right_BH = logits_BHK.argmax(-1) == chunk.labels[:, None]
            hits[name] += (right_BH & logits_BHK.isfinite().all(-1)).sum(0)
    count = len(tested.labels)
    return [(name, (found.double() / count).tolist()) for name, found in hits.items()]


def batches(train: Features, settings: HeadsSettings) -> Iterator[Tensor]:
    """Rows of batch after batch, without end: every epoch in an order of its own, none cut off."""
    size = batch_size(train, settings)
    rows = torch.empty(0, dtype=torch.int64)
    for epoch in itertools.count():
        keys_N = random_words(train.uids, seed=settings.seed, purpose="heads/order", draw=epoch)
        rows = torch.cat((rows, keys_N.argsort(stable=True)))
        while len(rows) >= size:
            yield rows[:size]
            rows = rows[size:]


def batch_size(train: Features, settings: HeadsSettings) -> int:
    """As set, or all samples if there are fewer."""
    return min(settings.batch_size, len(train.labels))


def on_device(features: Features, settings: HeadsSettings) -> Features:
    """The columns that heads are trained on, moved to the device."""
    device = find_device(settings.device)
    there = features.features.to(device), features.labels.to(device), features.uids.to(device)
    tokens = {"blocks": features.blocks.to(device), "patches": features.patches.to(device)}
    return Features(*there, features.classes, **tokens)


def check_tokens(features: Features) -> None:
    """Refuse class and patch tokens that are not finite; the features themselves are checked.

    Raises:
        SslpipeError: one is not.
    """
    for kind, tokens in (("class", features.blocks), ("patch", features.patches)):
        if not tokens.isfinite().all():
            raise SslpipeError(
                f"heads: {kind} tokens are not finite; check the encoder's weights, or encode in "
                "float32"
            )
