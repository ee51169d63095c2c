"""The linear probes of MAE, DINO and MoCo: a linear head on frozen features of augmented views.

Each is a setting of one trainer. The views are a stream of ours, random resized crops and flips:
exact and resumable. The encoder stays in eval mode and takes no gradients; a batch norm before the
head, where there is one, is trained. The number is the accuracy after the last epoch, on central
crops of every test sample; the best epoch on the test set, which the official codes print too, is
optimistic.

Differs from the official codes: one process, so MAE's batch norm sees the whole batch and not the
512 samples of a GPU; the warm-up reaches its peak one step earlier (schedules.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch
from ..device.handoff import find_device
from ..encoders import BlockEncoder
from ..encoders.monitors import evaluating
from ..encoders.protocols import declared_dim
from ..recipe.names import Entry
from ..recipe.schema import TrainSection
from ..train.optimizers import build_optimizer
from ..train.run import lr_scale
from ..train.world import keyed
from .features import central_batches, first_view
from .fitting import (
    OWN,
    Course,
    Learner,
    accuracy_on,
    course_of,
    fit,
    momentum_sgd,
    schedule_said,
)
from .labelled_streams import Split, augmented, split_of
from .results import Measure
from .subjects import Subject

BASE_WIDTH = 768  # features of a ViT-B
HEAD_STD = 0.01  # of the head's first weights, in all three; MAE cuts the tails at 200 std


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """A linear probe. `train.optimizer` has the learning rate for 256 samples.

    `blocks`: the head sees the class token after so many last blocks, side by side; 0: the pooled
    features, and so for encoders without blocks or class token. `patches`: and the mean of the
    patches. `normalised`: a batch norm without affine parameters before the head.
    """

    name: str
    train: TrainSection
    batch_size: int
    blocks: int = 0
    patches: bool = False
    normalised: bool = False
    resample: str = "bilinear"  # of the crops


# facebookresearch/mae, main_linprobe.py and FINETUNE.md (4 nodes of 8 GPUs, 512 samples each)
MAE = ProbeSettings(
    name="MAE",
    train=TrainSection(
        backbone=OWN,
        optimizer=Entry("lars", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}),
        epochs=90,
        warmup_epochs=10,
    ),
    batch_size=16384,
    blocks=1,
    normalised=True,
    resample="bicubic",
)
# facebookresearch/dino, eval_linear.py with its defaults on 8 GPUs: ViT-S
DINO = ProbeSettings(
    name="DINO",
    train=TrainSection(
        backbone=OWN,
        optimizer=momentum_sgd(0.001),
        epochs=100,
        schedule="cosine_per_epoch",
    ),
    batch_size=1024,
    blocks=4,
)
# the same file: --n_last_blocks 1 --avgpool_patchtokens true, for ViT-B
DINO_BASE = ProbeSettings(
    name="DINO ViT-B", train=DINO.train, batch_size=1024, blocks=1, patches=True
)
# facebookresearch/moco, main_lincls.py
MOCO = ProbeSettings(
    name="MoCo",
    train=TrainSection(
        backbone=OWN,
        optimizer=momentum_sgd(30.0),
        epochs=100,
        schedule="multistep",
        milestones=(60, 80),
    ),
    batch_size=256,
)


def dino_of(encoder: nn.Module) -> ProbeSettings:
    """DINO's setting for an encoder: DINO_BASE from the 768 features of a ViT-B on, else DINO."""
    return DINO_BASE if (declared_dim(encoder) or 0) >= BASE_WIDTH else DINO


def linear_probe(
    subject: Subject,
    shards: str | Path,
    test: str | Path | None = None,
    settings: ProbeSettings = MAE,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    state: Path | None = None,
) -> tuple[Measure, ...]:
    """Train a head on the labelled samples of `shards`, count right answers on those of `test`.

    Without `test`, a fifth of each class is held out. `epochs` and `batch_size` shorten the
    official run, and the protocol line says so. `state`: a file that is written every epoch, from
    which a run that was killed goes on. The encoder is moved to the device and keeps its weights.

    Raises:
        SslpipeError: no labels, one class, no class in common, views that are no pictures, or a
            learning rate that does not suit the features.
        ShardError: a set is missing or damaged.
        StateError: `state` is damaged or of another run.
    """
    chosen = find_device(device)
    split = split_of(shards, test, seed=seed)
    course = course_of(
        settings.train, settings.batch_size, samples=len(split.train), epochs=epochs,
        batch_size=batch_size,
    )  # fmt: skip
    encoder = subject.encoder.to(chosen)
    head, seen = head_of(subject, split, settings, chosen, seed=seed)
    how = protocol_line(settings, course, split, seen)
    learn(subject, split, settings, course, head, how, seed=seed, state=state)
    predict = partial(scores, encoder, head, settings)
    with central_batches(subject.recipe, shards=split.test.restricted(), device=chosen) as batches:
        top1 = accuracy_on(predict, batches, split.test.labels)
    return (Measure(f"linear probe ({settings.name}) top-1", top1, how, chance=split.chance),)


def learn(
    subject: Subject,
    split: Split,
    settings: ProbeSettings,
    course: Course,
    head: nn.Module,
    how: str,
    *,
    seed: int,
    state: Path | None,
) -> None:
    """Train the head in place on frozen features; `state`: the file that it can go on from."""
    recipe = augmented(
        subject.recipe, batch_size=course.part, seed=seed, remainder="wrap",
        resample=settings.resample,
    )  # fmt: skip
    scale = lr_scale(course.train, course.part)
    optimizer = build_optimizer(course.train.optimizer, head, scale=scale)
    learner = Learner(
        module=head,
        optimizer=optimizer,
        backward=partial(backward, subject.encoder, head, settings),
        identity=f"{how}; seed {seed}, weights {subject.digest}",
        seed=seed,
    )
    fit(learner, course, recipe, split.train.restricted(), state)


def backward(
    encoder: nn.Module, head: nn.Module, settings: ProbeSettings, batches: Iterator[Batch]
) -> None:
    """Make the head's gradients of one step, whose batch is encoded in parts."""
    parts = [
        (read(encoder, first_view(batch.in_float32(), "global"), settings)[0], batch.labels)
        for batch in batches
    ]
    columns_BD, labels_B = (torch.cat(column) for column in zip(*parts, strict=True))
    F.cross_entropy(head(columns_BD), labels_B).backward()  # type: ignore[no-untyped-call]


def scores(
    encoder: nn.Module, head: nn.Module, settings: ProbeSettings, images_BCHW: Tensor
) -> Tensor:
    """What the head says of images, (B, K)."""
    with evaluating(head):
        return head(read(encoder, images_BCHW, settings)[0])  # type: ignore[no-any-return]


def read(encoder: nn.Module, images_BCHW: Tensor, settings: ProbeSettings) -> tuple[Tensor, str]:
    """What the head sees of images, (B, D) float32 without gradients, and what that is in words."""
    with evaluating(encoder):
        if not settings.blocks or not isinstance(encoder, BlockEncoder):
            return encoder(images_BCHW).float(), "pooled features"
        shown = encoder.last_blocks(images_BCHW, settings.blocks)
    if shown.classes is None:
        return shown.features.float(), "pooled features (there is no class token)"
    columns, words = shown.classes.flatten(1), "class token"
    if shown.classes.shape[1] > 1:
        words = f"class tokens of the last {shown.classes.shape[1]} blocks"
    if settings.patches:
        columns = torch.cat([columns, shown.patches.mean(dim=1)], dim=1)
        words += " and mean of the patches"
    return columns.float(), words


def head_of(
    subject: Subject, split: Split, settings: ProbeSettings, device: torch.device, *, seed: int
) -> tuple[nn.Sequential, str]:
    """The head as it starts, a function of the seed, and what it sees in words."""
    size = augmented(
        subject.recipe, batch_size=1, seed=seed, remainder="wrap", resample=settings.resample
    ).views["global"].ops[0].settings["size"]  # fmt: skip
    columns_1D, seen = read(subject.encoder, torch.zeros(1, 3, *size, device=device), settings)
    width = columns_1D.shape[1]
    with keyed("evaluate/head", seed=seed):
        linear = nn.Linear(width, split.outputs)
        nn.init.normal_(linear.weight, std=HEAD_STD)
        nn.init.zeros_(linear.bias)
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if settings.normalised else nn.Identity()
    return nn.Sequential(norm, linear).to(device), seen


def protocol_line(settings: ProbeSettings, course: Course, split: Split, seen: str) -> str:
    """Say in one line all that the accuracy depends on, as reports print it."""
    train, optimizer = course.train, course.train.optimizer
    norm = "batch norm, " if settings.normalised else ""
    lr = optimizer.settings["lr"]
    return (
        f"{settings.name} linear probe, {course.said}: {seen}, {norm}{optimizer.name.upper()} of "
        f"lr {lr:g} x {course.batch}/256{schedule_said(train)}, {train.epochs} epochs of random "
        f"crops and flips of {len(split.train)} samples; last epoch, {len(split.test)} test "
        f"samples ({split.said}), {split.classes} classes"
    )
