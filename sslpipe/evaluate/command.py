"""`sslpipe eval`: a checkpoint's encoder beside the same encoder as it was before training."""

from pathlib import Path

import torch
from torch import nn

from ..device.handoff import find_device
from ..pipeline import load
from ..recipe import Recipe
from ..recipe.schema import StreamSection
from ..shards.manifest import read_manifest
from ..train import initial_method, load_encoder
from . import Report, evaluate
from .classes import difference
from .features import central_batches


def compare(
    checkpoint: str | Path,
    *,
    shards: str | Path,
    test: str | Path | None = None,
    untrained: bool = True,
    device: str | None = None,
    strict: bool = False,
) -> dict[str, Report]:
    """Evaluate on the central crops of labelled shards: "trained", and "untrained" if wanted.

    Raises:
        StateError: the checkpoint is missing or damaged.
        SslpipeError: the shards have no labels or share no class, or this machine has no such
            device; `strict`: a class is in one of the sets only.
    """
    chosen = find_device(device)
    encoder, recipe = load_encoder(checkpoint)
    if test is not None:
        check_classes(shards, test, strict=strict)
    encoders = {"trained": encoder}
    if untrained:
        encoders["untrained"] = fresh_encoder(recipe, shards)
    return {
        name: one(e, recipe, shards, test, chosen, strict=strict) for name, e in encoders.items()
    }


def check_classes(shards: str | Path, test: str | Path, *, strict: bool) -> None:
    """Compare the classes of two sets before any image is read, where both have names.

    Raises:
        ShardError: there is no manifest.
        SslpipeError: as `difference`.
    """
    bank, queries = (read_manifest(path).classes for path in (shards, test))
    if bank and queries:
        difference(bank, queries, strict=strict)


def fresh_encoder(recipe: Recipe, shards: str | Path) -> nn.Module:
    """The encoder that the run began with: the weights follow from the recipe's seed."""
    # the stream of the run may be a mixture, of which these shards are one part
    stream = StreamSection(batch_size=recipe.stream.batch_size, allow_repeats=True)
    plain = recipe.model_copy(update={"stream": stream})
    with load(plain, shards=shards, device="cpu", rank=0, world_size=1) as pipeline:
        return initial_method(recipe, pipeline.spec).encoder


def one(
    encoder: nn.Module,
    recipe: Recipe,
    shards: str | Path,
    test: str | Path | None,
    device: torch.device,
    *,
    strict: bool = False,
) -> Report:
    """Run all protocols for one encoder."""
    with central_batches(recipe, shards=shards, device=device) as bank:
        if test is None:
            return evaluate(encoder, bank, None, device)
        with central_batches(recipe, shards=test, device=device) as queries:
            return evaluate(encoder, bank, queries, device, strict=strict)
