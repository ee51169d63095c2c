"""Fine-tuning by the settings of papers (finetune_settings.py), on all labels or on few.

A copy of the whole encoder and a fresh head learn from an augmented stream of ours, exact and
resumable; the number is the accuracy after the last epoch, on central crops of every test sample.

Differs from the official codes: there is no RandAugment (rand-m9-mstd0.5-inc1); colour jitter of
0.4 stands for it, which is what timm falls back to without it. Erased boxes are of the mean colour,
not of noise. Mixup and CutMix are drawn for each sample, not for each batch (mixing.py), within
parts of up to 128 samples; batch norms see such a part. What does not fill a batch of an epoch is
left out of it. Few labels are draws keyed by uid, not SimCLR's lists.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch
from ..device.handoff import find_device
from ..encoders import BlockEncoder
from ..encoders.libraries import library, undecayed_by_name
from ..encoders.library_encoders import LibraryEncoder
from ..encoders.monitors import evaluating
from ..errors import SslpipeError
from ..recipe import Recipe
from ..train.optimizers import EXEMPT, build_optimizer, set_apart
from ..train.run import lr_scale, move_module
from ..train.world import keyed
from .features import central_batches, first_view
from .finetune_settings import MAE_BASE, TuneSettings
from .fitting import Course, Learner, accuracy_on, course_of, fit, schedule_said
from .labelled_streams import Split, augmented, share_of_labels, split_of
from .mixing import decide_mixes, mix_images, mix_labels, soft_targets
from .results import Measure
from .subjects import Subject
from .subsets import mean_of_draws


class Classifier(nn.Module):
    """An encoder below a norm and a linear head: images (B, C, H, W) -> scores (B, K).

    `encoder` gives pooled features; a BlockEncoder with `mean_patches` the mean of its patches.
    """

    def __init__(
        self, encoder: nn.Module, norm: nn.Module, head: nn.Module, *, mean_patches: bool
    ) -> None:
        super().__init__()
        self.encoder, self.norm, self.head = encoder, norm, head
        self.mean_patches = mean_patches

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Score images (B, C, H, W): (B, classes)."""
        if self.mean_patches and isinstance(self.encoder, BlockEncoder):
            features_BD = self.encoder.last_blocks(images_BCHW, 1).patches.mean(dim=1)
        else:
            features_BD = self.encoder(images_BCHW)
        return self.head(self.norm(features_BD))  # type: ignore[no-any-return]


def finetune(
    subject: Subject,
    shards: str | Path,
    test: str | Path | None = None,
    settings: TuneSettings = MAE_BASE,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    state: Path | None = None,
) -> tuple[Measure, ...]:
    """Train a copy of the encoder on the labels of `shards`, count right answers on `test`.

    Without `test`, a fifth of each class is held out. `epochs` and `batch_size` shorten the
    official run, and the protocol line says so. `autocast` (e.g. torch.bfloat16) is the precision
    of forward passes. `state`: a file that is written every epoch, from which a run that was killed
    goes on; of several draws each has its own. With several draws the value is their mean.

    Raises:
        SslpipeError: no labels, one class, no class in common, views that are no pictures, an
            encoder that the settings do not suit, or weights that are no longer finite.
        ShardError: a set is missing or damaged.
        StateError: `state` is damaged or of another run.
    """
    require_blocks(subject, settings)
    chosen = find_device(device)
    split = split_of(shards, test, seed=seed)
    values, how = [], ""
    for draw in range(settings.draws):
        drawn = split
        if settings.fraction < 1:
            few = share_of_labels(split.train, settings.fraction, seed=seed + draw)
            drawn = replace(split, train=few)
        course = course_of(
            settings.train, settings.batch_size, samples=len(drawn.train), epochs=epochs,
            batch_size=batch_size,
        )  # fmt: skip
        how = protocol_line(settings, course, drawn)
        model = classifier_of(subject, drawn, settings, chosen, seed=seed + draw)
        file = state.with_name(f"{state.name}.{draw}") if state and settings.draws > 1 else state
        learn(
            subject, drawn, settings, course, model, how,
            seed=seed + draw, autocast=autocast, state=file,
        )  # fmt: skip
        values.append(accuracy(subject.recipe, drawn, model, chosen))
    value, interval = mean_of_draws(values)
    name = f"fine-tuned ({settings.name}) top-1"
    return (Measure(name, value, how, interval, split.chance),)


def require_blocks(subject: Subject, settings: TuneSettings) -> None:
    """Check that the encoder has what the settings speak of.

    Raises:
        SslpipeError: they are for ViTs, and it is none of the library's.
    """
    encoder = subject.encoder
    suits = isinstance(encoder, BlockEncoder) and isinstance(encoder, LibraryEncoder)
    if settings.mean_patches and not suits:
        raise SslpipeError(
            f"{subject.name}: is a {type(encoder).__name__}, and fine-tuning by {settings.name} is "
            "for ViTs of timm: rates by layer, drop path and a mean of patches; choose RESNET"
        )


def classifier_of(
    subject: Subject, split: Split, settings: TuneSettings, device: torch.device, *, seed: int
) -> Classifier:
    """A trainable copy of the encoder below a fresh head, which is a function of the seed."""
    encoder = copy.deepcopy(subject.encoder).cpu().requires_grad_(True)
    size = stream_recipe(subject.recipe, settings, part=1, seed=seed).views["global"].ops[0]
    with evaluating(encoder):
        width = encoder(torch.zeros(1, 3, *size.settings["size"])).shape[1]
    norm: nn.Module = nn.Identity()
    if settings.mean_patches and isinstance(encoder, LibraryEncoder):
        encoder.model.norm = nn.Identity()
        norm = nn.LayerNorm(width, eps=1e-6)
        drop_paths(encoder.model.blocks, settings.drop_path)
    with keyed("evaluate/head", seed=seed):
        head = nn.Linear(width, split.outputs)
        nn.init.trunc_normal_(head.weight, std=settings.head_std)
        nn.init.zeros_(head.bias)
    model = Classifier(encoder, norm, head, mean_patches=settings.mean_patches)
    move_module(model, device)
    return model


def drop_paths(blocks: nn.Sequential, rate: float) -> None:
    """Drop the residual branches of a sample: from 0 in the first block to `rate` in the last."""
    kind = library("timm.layers").DropPath
    for number, block in enumerate(blocks):
        block.drop_path1, block.drop_path2 = (
            kind(rate * number / max(1, len(blocks) - 1)) for _ in range(2)
        )


def optimizer_of(
    model: Classifier, settings: TuneSettings, course: Course
) -> torch.optim.Optimizer:
    """The optimizer, with rates by layer and those of the head; class token and positions of ViTs
    are not decayed.
    """
    entry = course.train.optimizer
    optimizer = build_optimizer(entry, model, scale=lr_scale(course.train, course.part))
    set_apart(optimizer, undecayed_by_name(model.encoder), EXEMPT)
    if settings.head_lr is not None:
        rates = {"lr_scale": settings.head_lr / entry.settings["lr"]}
        set_apart(optimizer, model.head.parameters(), rates)
    return optimizer


def stream_recipe(recipe: Recipe, settings: TuneSettings, *, part: int, seed: int) -> Recipe:
    """Make the recipe of the augmented stream, `part` samples a batch, that a model is tuned on."""
    return augmented(
        recipe, batch_size=part, seed=seed, remainder="drop", resample=settings.resample,
        jitter=settings.jitter, erase=settings.erase,
    )  # fmt: skip


def learn(
    subject: Subject,
    split: Split,
    settings: TuneSettings,
    course: Course,
    model: Classifier,
    how: str,
    *,
    seed: int,
    autocast: torch.dtype | None,
    state: Path | None,
) -> None:
    """Train the model in place, as the course says; `state`: the file that it can go on from."""
    device = next(model.parameters()).device
    recipe = stream_recipe(subject.recipe, settings, part=course.part, seed=seed)
    optimizer = optimizer_of(model, settings, course)

    def backward(batches: Iterator[Batch]) -> None:
        """Sum the gradients of the parts of a step."""
        for batch in batches:
            images, targets = examples(batch, settings, classes=split.outputs, seed=seed)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss = F.cross_entropy(model(images), targets)
            (loss / course.train.accumulate).backward()  # type: ignore[no-untyped-call]

    learner = Learner(
        module=model,
        optimizer=optimizer,
        backward=backward,
        identity=f"{how}; seed {seed}, weights {subject.digest}",
        seed=seed,
    )
    fit(learner, course, recipe, split.train.restricted(), state)


def examples(
    batch: Batch, settings: TuneSettings, *, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Images and soft targets (B, K) of a batch, mixed if the settings say so."""
    images = first_view(batch.in_float32(), "global")
    if settings.mixing is None:
        smoothing = settings.smoothing
        return images, soft_targets(batch.labels, classes=classes, smoothing=smoothing)
    height, width = images.shape[-2:]
    mixes = decide_mixes(
        settings.mixing, batch.uids.numpy(), seed=seed, epoch=batch.epoch,
        height=height, width=width,
    )  # fmt: skip
    targets = mix_labels(batch.labels, mixes, classes=classes, smoothing=settings.smoothing)
    return mix_images(images, mixes), targets


def accuracy(recipe: Recipe, split: Split, model: Classifier, device: torch.device) -> float:
    """The share of right answers on the central crops of the test samples."""
    manifest = split.test.restricted()
    with central_batches(recipe, shards=manifest, device=device) as batches, evaluating(model):
        return accuracy_on(model, batches, split.test.labels)


def protocol_line(settings: TuneSettings, course: Course, split: Split) -> str:
    """Say in one line all that the accuracy depends on, as reports print it."""
    train, optimizer = course.train, course.train.optimizer
    head = f", {settings.head_lr:g} of the head" if settings.head_lr else ""
    mixing = settings.mixing
    extras = (
        f"layer decay {optimizer.settings.get('layer_decay', 1.0):g}",
        f"drop path {settings.drop_path:g}",
        f"mixup {mixing.mixup:g} and cutmix {mixing.cutmix:g} a sample" if mixing else "",
        f"smoothing {settings.smoothing:g}",
        f"colour jitter {settings.jitter:g} for RandAugment" if settings.jitter else "",
        f"erasing {settings.erase:g}",
    )
    used = ", ".join(extra for extra in extras if settings.mean_patches and extra)
    return (
        f"fine-tuning by {settings.name}, {course.said}: {optimizer.name.upper()} of lr "
        f"{optimizer.settings['lr']:g}{head} x {course.batch}/256{schedule_said(train)}, "
        f"{train.epochs} epochs of random crops and flips{', ' if used else ''}{used}; "
        f"{len(split.train)} labels{draws_said(settings)}; last epoch, {len(split.test)} test "
        f"samples ({split.said}), {split.classes} classes"
    )


def draws_said(settings: TuneSettings) -> str:
    """Say which share of the labels was drawn, and how often; empty where all are used."""
    if settings.fraction == 1:
        return ""
    how = f" ({settings.fraction:.0%}, balanced, keyed by uid"
    return f"{how}, mean of {settings.draws} draws)" if settings.draws > 1 else f"{how})"
