"""How well a model of text guesses tokens: nats and bits of each document, beside a constant guess.

The mean over tokens is the loss that training minimises, on documents that it need not have seen;
document_nats.py has the formulas. Numbers of two vocabularies are compared by bits per byte alone:
a token of one says more than a token of another. Masked tokens and the spans of T5 are no code of
the text, and have no such number; theirs are of masks keyed by (seed, uid), the same for every
encoder and every time.
Letters: N tokens, K ids, B rows, D documents.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..batch import IGNORED
from ..encoders.monitors import evaluating
from ..errors import SslpipeError
from ..methods import METHODS, Method
from ..methods.parts.tokens import TokenMethod
from ..modalities.text.decider import TextDecider, tokens_of, vocabulary_of
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.names import choose
from ..recipe.schema import HoldoutSection, RowsSection, StreamSection
from ..shards.manifest import Manifest, open_manifest
from ..stream.packed import Packed
from .document_nats import (
    DocumentNats,
    DocumentSizes,
    bits_per_byte,
    by_document,
    row_nats,
    unigram_entropy,
)
from .results import Measure
from .subjects import Subject, whole_methods

QUANTILES = (0.1, 0.5, 0.9)  # of documents
LOGITS = 2**26  # numbers of a batch's logits, about: 256 MB
ROWS = 64  # of a batch at most
Part = Literal["train", "held_out", "all"]  # of `stream.holdout`


def perplexity(
    subject: Subject,
    shards: Path,
    *,
    device: torch.device,
    part: Part | None = None,
    untrained: bool = True,
) -> dict[str, tuple[Measure, ...]]:
    """Measure "trained", and "untrained" beside it, on all rows of some documents, each once.

    part: `train` or `held_out` of the recipe's `stream.holdout`, or `all` documents; None: what was
    held out, or all if nothing was.

    Raises:
        SslpipeError: the subject is no checkpoint of a method that guesses tokens; there is no such
            part; or its documents are too short.
        ShardError: what is wrong with the shards.
    """
    kind, holdout = asked_of(subject, part)
    recipe = every_row(subject.recipe, holdout, kind)
    with load(recipe, shards=shards, device=device, rank=0, world_size=1, epochs=1) as pipe:
        methods = whole_methods(subject, pipe.spec, untrained=untrained)
        found, counts_K = guessed(methods, pipe)
        if not counts_K.sum():
            raise SslpipeError(
                f"perplexity: {shards}: no {kind.asked_for} is asked for in its documents, as they "
                "are too short; measure longer ones"
            )
        sizes = sizes_of(pipe, found["trained"].uids_D) if kind.codes_text else None
    said = protocol_of(kind, recipe, found["trained"], open_manifest(shards), subject.shards)
    chance = unigram_entropy(counts_K)
    return {name: measures_of(kind, each, chance, sizes, said) for name, each in found.items()}


def asked_of(
    subject: Subject, part: Part | None
) -> tuple[type[TokenMethod], HoldoutSection | None]:
    """What a subject is asked for tokens by, and which documents; None: all.

    Raises:
        SslpipeError: it is no checkpoint of a method that guesses tokens; or there is no such part.
    """
    kind = token_method(subject.recipe)
    if subject.checkpoint is None or kind is None:
        raise SslpipeError(
            f"perplexity: {subject.name} is no run of a method that guesses tokens "
            "(causal_lm, mlm, t5); name the last.pt of one, or leave perplexity out"
        )
    return kind, holdout_of(subject.recipe, part)


def guesses_tokens(subject: Subject) -> bool:
    """Whether a subject is a checkpoint whose method can be asked for tokens."""
    return subject.checkpoint is not None and token_method(subject.recipe) is not None


def token_method(recipe: Recipe) -> type[TokenMethod] | None:
    """The class of a recipe's method, if it guesses tokens."""
    if recipe.method is None:
        return None
    found = choose(recipe.method, METHODS, "method")
    return found if isinstance(found, type) and issubclass(found, TokenMethod) else None


def holdout_of(recipe: Recipe, part: Part | None) -> HoldoutSection | None:
    """Which documents are measured; None: all.

    Raises:
        SslpipeError: a part of a recipe that holds nothing out.
    """
    trained = recipe.stream.holdout
    if part == "all" or (part is None and trained is None):
        return None
    if trained is None:
        raise SslpipeError(
            f"--part {part}: {recipe.path} has no stream.holdout, so all documents were trained "
            "on; measure other shards, or train with stream.holdout: {fraction: 0.05}"
        )
    return trained.model_copy(update={"part": part or "held_out"})


def every_row(recipe: Recipe, holdout: HoldoutSection | None, kind: type[TokenMethod]) -> Recipe:
    """The recipe over all pieces of documents, a row each, as long as in training.

    A piece of what is read from left to right begins with the last token of the one before.
    """
    groups = list(recipe.views)
    numbers = tokens_of(recipe, groups).length * vocabulary_of(recipe, groups).size  # of a row
    stream = StreamSection(
        batch_size=max(1, min(ROWS, LOGITS // numbers)),
        seed=recipe.stream.seed,
        order="sequential",
        rows=RowsSection(packing="overlap" if kind.codes_text else "split"),
        holdout=holdout,
        on_bad="raise",
    )
    return recipe.model_copy(update={"stream": stream})


def guessed(
    methods: Mapping[str, Method], pipe: Pipeline
) -> tuple[dict[str, DocumentNats], Tensor]:
    """What each document costs by each method, and how often each id was asked for, (K,)."""
    uids: list[Tensor] = []
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in methods}
    counts_K = torch.zeros(0, dtype=torch.int64)
    for method in methods.values():
        method.to(pipe.device)
    for batch in pipe:
        uids.append(batch.uids)
        for name, method in methods.items():
            assert isinstance(method, TokenMethod)
            with evaluating(method):
                guesses = method.guesses(batch)
            asked = row_nats(guesses.logits_NK, guesses.targets_N, len(batch.uids))
            columns[name].append((asked[0].cpu(), asked[1].cpu()))
        width = guesses.logits_NK.shape[1]
        ids = guesses.targets_N[guesses.targets_N != IGNORED]
        more_K = torch.bincount(ids, minlength=width).cpu()
        counts_K = more_K + (counts_K if len(counts_K) else 0)
    found = {
        name: by_document(torch.cat(uids), *map(torch.cat, zip(*parts, strict=True)))
        for name, parts in columns.items()
    }
    return found, counts_K


def sizes_of(pipe: Pipeline, uids_D: Tensor) -> DocumentSizes:
    """Tokens and bytes of documents, from the indexes of the set behind a pipeline."""
    assert isinstance(pipe.source, Packed)
    (corpus,), (part,) = pipe.source.corpora, pipe.parts
    decider = part.decider
    assert isinstance(decider, TextDecider)
    samples = np.concatenate([corpus.store.index(n).samples for n in range(corpus.store.shards)])
    order = samples["uid"].argsort()
    chosen = samples[order[np.searchsorted(samples["uid"], uids_D.numpy(), sorter=order)]]
    tokens = decider.lengths(chosen["extent"]) - decider.tokens.begin
    bytes_D = torch.from_numpy(chosen["extent"][:, 0].astype(np.int64))
    return DocumentSizes(torch.from_numpy(tokens), bytes_D)


def protocol_of(
    kind: type[TokenMethod],
    recipe: Recipe,
    found: DocumentNats,
    manifest: Manifest,
    trained_on: str,
) -> str:
    """How the numbers were made, in words; trained_on: the fingerprint of the run's set."""
    length, holdout = tokens_of(recipe, list(recipe.views)).length, recipe.stream.holdout
    held = holdout is not None and holdout.part == "held_out"
    which = f"{len(found.uids_D):,} of {manifest.samples:,} documents"
    if holdout is not None:
        share = f"stream.holdout of {holdout.fraction:.3g} by uid"
        which += f" ({holdout.part}, {share}; --part all: all of them)"
    if trained_on == manifest.fingerprint and not held:
        which += ", which the run was trained on"
    pieces = f"pieces of {length} tokens, each once, masks keyed by seed {recipe.stream.seed}"
    if kind.codes_text:
        pieces = (
            f"pieces of {length} tokens that begin with the last token of the one before: each "
            "token but a document's first is asked for once"
        )
    return (
        f"{which}; {int(found.asked_D.sum()):,} {kind.asked_for}s; {pieces}; chance: the entropy "
        "of the tokens that are asked for"
    )


def measures_of(
    kind: type[TokenMethod],
    found: DocumentNats,
    unigram: float,
    sizes: DocumentSizes | None,
    said: str,
) -> tuple[Measure, ...]:
    """Means over tokens, and quantiles over documents, of one encoder."""
    name, mean = f"nats per {kind.asked_for}", found.per_token
    measures = [
        Measure(name, mean, said, chance=unigram),
        Measure(f"perplexity per {kind.asked_for}", math.exp(mean), said, chance=math.exp(unigram)),
    ]
    each_D = found.means()
    if sizes is not None:
        name = "bits per byte"
        whole, each_D = bits_per_byte(found, sizes)
        blind = replace(found, nats_D=unigram * found.asked_D)
        measures.append(Measure(name, whole, said, chance=bits_per_byte(blind, sizes)[0]))
    spread = torch.quantile(each_D, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    measures += [
        Measure(
            f"{name}, {q:.0%} of documents below", value, f"quantile over {len(each_D):,} documents"
        )
        for q, value in zip(QUANTILES, spread, strict=True)
    ]
    return tuple(measures)
