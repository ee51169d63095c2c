"""`sslpipe eval`: features once, of all encoders in one pass; then protocol by protocol."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..device.handoff import find_device
from ..errors import SslpipeError
from ..process import user_cache
from ..shards.labels_file import read_labels
from .classes import join
from .encoding import BASELINES
from .feature_cache import cached_features
from .feature_parts import ExtractSettings
from .features import Features
from .labelling import labelled_by
from .perplexity import asked_of, guesses_tokens, perplexity
from .protocols import FROZEN, GUESSING, ON_PIXELS, TRAINED, chosen_protocols
from .results import Evaluation, Measure
from .settings import (
    AS_SHIPPED,
    EvalSettings,
    check_classes,
    check_labels,
    check_options,
    needed_of,
    reads_features,
)
from .subjects import Subject, open_subject
from .towers import PAIRED, check_towers, open_towers
from .zero_shot import TEMPLATES, read_templates

ByEncoder = dict[str, tuple[Measure, ...]]  # "trained", "untrained", and one of BASELINES
# a protocol and what it measured, as soon as it has; or why the set is not for it
Say = Callable[[str, ByEncoder | str], object]
Progress = Callable[[int, int], None]  # samples that are encoded, of how many
Begin = Callable[[str], object]  # a protocol, before it is measured


def quiet(done: int, total: int) -> None:
    """Hear how far the encoding is, and say nothing."""


def evaluate(
    name: str | Path,
    shards: str | Path,
    test: str | Path | None = None,
    settings: EvalSettings = AS_SHIPPED,
    *,
    say: Say = lambda protocol, found: None,
    progress: Progress = quiet,
    begin: Begin = lambda protocol: None,
) -> Evaluation:
    """Measure a subject (see `open_subject`) on labelled shards, beside what it must beat.

    Without `test` samples are left out in turn or held out, as each protocol says. Classes are
    matched by name; test samples of a class that the training set lacks are left out.

    Raises:
        StateError: a checkpoint that is missing or damaged.
        ShardError: what is wrong with the shards or the labels.
        SslpipeError: an unknown protocol or device, no labels, or sets that share no class;
            `strict`: a class is in one of them only.
        ExtraError: a library of the extra `train` is not installed.
    """
    chosen = chosen_protocols(settings.protocols)
    find_device(settings.device)
    if test is not None:
        check_classes(shards, test, strict=settings.strict)
    subject = open_subject(name, shards)
    if {"quick", "all"} & {*settings.protocols} and guesses_tokens(subject):
        chosen = tuple(dict.fromkeys((GUESSING, *chosen)))
    needed = needed_of(chosen, settings)
    check_options(chosen, settings)
    check_subject(subject, needed, settings)
    if settings.labels is None:
        check_labels(shards, needed, classes=2)
    if test is not None:
        check_labels(test, needed, classes=1)
    bank, queries = Path(shards), None if test is None else Path(test)
    train = with_labels(encoded(subject, bank, settings, progress), settings.labels)
    tested = encoded(subject, queries, settings, progress) if queries else {}
    tested, note = in_training_classes(train, tested, strict=settings.strict)

    def run(protocol: str) -> ByEncoder:
        if protocol in FROZEN:
            return on_features(protocol, train, tested)
        return on_shards(protocol, subject, bank, queries, settings)

    measures, skipped = measured(chosen, needed, run, begin, say)
    return Evaluation(
        subject, bank, queries, train, dict.fromkeys(train, ()) | measures, tested, note, skipped
    )


def check_subject(subject: Subject, needed: Sequence[str], settings: EvalSettings) -> None:
    """Refuse what cannot be measured of a subject before any encoding.

    Raises:
        SslpipeError: it guesses no tokens or holds nothing out, or has no text tower.
    """
    if GUESSING in needed:
        asked_of(subject, settings.part)
    if {*PAIRED} & {*needed}:
        check_towers(subject)


def measured(
    chosen: Sequence[str],
    needed: Sequence[str],
    run: Callable[[str], ByEncoder],
    begin: Begin,
    say: Say,
) -> tuple[ByEncoder, dict[str, str]]:
    """What each protocol measures, and why those that were left out were.

    Raises:
        SslpipeError: the set is not for one of `needed`.
    """
    measures: ByEncoder = {}
    skipped: dict[str, str] = {}
    for protocol in chosen:
        begin(protocol)
        try:
            found = run(protocol)
        except SslpipeError as error:
            if protocol in needed:
                raise
            skipped[protocol], found = str(error), {}
        for encoder, more in found.items():
            measures[encoder] = (*measures.get(encoder, ()), *more)
        say(protocol, found or skipped[protocol])
    return measures, skipped


def encode(
    name: str | Path,
    shards: str | Path,
    test: str | Path | None = None,
    settings: EvalSettings = AS_SHIPPED,
    *,
    progress: Progress = quiet,
) -> None:
    """Extract and keep the features that `evaluate` starts from, if any protocol does.

    All ranks call it, each for its share, then one of them `evaluate`, which finds them.

    Raises:
        SslpipeError: as `evaluate`, of the subject and the shards.
    """
    subject = open_subject(name, shards)
    for part in (shards, test):
        if part is not None:
            encoded(subject, Path(part), settings, progress)


def on_shards(
    protocol: str, subject: Subject, bank: Path, queries: Path | None, settings: EvalSettings
) -> ByEncoder:
    """One protocol that needs more of a run, or of its samples, than features."""
    device = find_device(settings.device)
    if protocol == GUESSING:
        return perplexity(
            subject, queries or bank, device=device, part=settings.part,
            untrained=settings.untrained,
        )  # fmt: skip
    if protocol in PAIRED:
        return of_towers(protocol, subject, queries or bank, settings)
    run = TRAINED[protocol]
    return {"trained": run(subject, bank, queries, device=device, epochs=settings.epochs)}


def encoded(
    subject: Subject, shards: Path, settings: EvalSettings, progress: Progress
) -> dict[str, Features]:
    """The features of a set by all encoders, from the cache if they are there.

    None where no protocol reads them.
    """
    if not reads_features(settings):
        return {}
    extraction = ExtractSettings(
        untrained=settings.untrained, pixels=settings.pixels, device=settings.device
    )
    folder = settings.cache or cache_of(subject)
    return cached_features(subject, shards, folder, extraction, progress=progress)


def with_labels(found: dict[str, Features], file: Path | None) -> dict[str, Features]:
    """The features of all encoders, labelled by a file if there is one.

    Raises:
        ShardError: what is wrong with the file.
    """
    if file is None or not found:
        return found
    table = read_labels(file)
    return {encoder: labelled_by(each, table) for encoder, each in found.items()}


def on_features(
    protocol: str, train: Mapping[str, Features], tested: Mapping[str, Features]
) -> ByEncoder:
    """One protocol for all encoders that it is for."""
    run = FROZEN[protocol]
    found = {e: run(f, tested.get(e)) for e, f in train.items() if e not in BASELINES}
    for name in BASELINES:
        if name in train and protocol in ON_PIXELS:
            found[name] = run(*less_their_mean(train[name], tested.get(name)))
    return found


def of_towers(protocol: str, subject: Subject, shards: Path, settings: EvalSettings) -> ByEncoder:
    """One protocol for both towers of a run, trained and untrained."""
    given = settings.templates
    templates = TEMPLATES if given is None else read_templates(given)
    pair = open_towers(subject, untrained=settings.untrained)
    return PAIRED[protocol](pair, shards, find_device(settings.device), templates)


def less_their_mean(train: Features, test: Features | None) -> tuple[Features, Features | None]:
    """A baseline without the mean of the training set, most of any cosine between pictures.

    So the baseline is the same whether a recipe normalises its views or not.
    """
    mean_D = train.features.mean(0)
    bank = replace(train, features=train.features - mean_D)
    if test is None:
        return bank, None
    return bank, replace(test, features=test.features - mean_D)


def in_training_classes(
    train: Mapping[str, Features], tested: Mapping[str, Features], *, strict: bool
) -> tuple[dict[str, Features], str]:
    """The test sets in the class numbers of the training set, and what only one set has."""
    if not tested:
        return {}, ""
    bank, queries = train["trained"].labelled(), tested["trained"].labelled()
    found = join(bank, queries, strict=strict)
    keep = tested["trained"].labels >= 0
    same = {
        encoder: replace(features.at(keep), labels=found.labels, classes=found.classes)
        for encoder, features in tested.items()
    }
    return same, found.said


def cache_of(subject: Subject) -> Path:
    """Find the folder that features are kept in: beside a checkpoint, else in the user's cache.

    Raises:
        SslpipeError: nothing can be written there, or this user has no home.
    """
    path = Path(subject.name)
    run = path if path.is_dir() else path.parent
    if path.exists() and os.access(run, os.W_OK):
        return run / "features"
    folder = user_cache("features")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SslpipeError(
            f"{folder}: cannot be made ({error.strerror}); name a folder for features: --cache"
        ) from error
    return folder
