"""`sslpipe eval`: features once, of all encoders in one pass; then protocol by protocol."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..device.handoff import find_device
from ..errors import SslpipeError
from ..shards.contents import labels_kept
from ..shards.labels_file import read_labels
from ..shards.manifest import read_manifest
from .classes import difference, join
from .encoding import BASELINES
from .feature_cache import cached_features
from .feature_parts import ExtractSettings
from .features import Features
from .labelling import labelled_by
from .perplexity import Part, guesses_tokens, perplexity
from .protocols import FROZEN, GUESSING, ON_PIXELS, TRAINED, chosen_protocols
from .results import Evaluation, Measure
from .subjects import Subject, open_subject
from .towers import PAIRED, open_towers
from .zero_shot import TEMPLATES, read_templates

ByEncoder = dict[str, tuple[Measure, ...]]  # "trained", "untrained", and one of BASELINES
# a protocol and what it measured, as soon as it has; or why the set is not for it
Say = Callable[[str, ByEncoder | str], object]
# of `quick` and `all`, what is an error where a set is not for it; the others say so, and go on
NEEDED = ("label_free", "knn", "linear")
# of protocols, what needs no labels
UNLABELLED = ("label_free", GUESSING, "cross_retrieval")
Progress = Callable[[int, int], None]  # samples that are encoded, of how many


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What is measured, and beside what; `cache` is the folder that features are kept in."""

    protocols: Sequence[str] = ("quick",)
    untrained: bool = True
    pixels: bool = True
    strict: bool = False  # refuse sets whose classes are not the same
    labels: Path | None = None  # of samples of the shards, before their own
    device: str | None = None
    cache: Path | None = None  # None: `features` beside a checkpoint, or the user's cache
    epochs: int | None = None  # of protocols that train; None: as officially
    part: Part | None = None  # documents that perplexity is of; None: those that were held out
    templates: Path | None = None  # of zero_shot, one a line; None: TEMPLATES


def quiet(done: int, total: int) -> None:
    """Hear how far the encoding is, and say nothing."""


def evaluate(
    name: str | Path,
    shards: str | Path,
    test: str | Path | None = None,
    settings: EvalSettings = EvalSettings(),
    *,
    say: Say = lambda protocol, found: None,
    progress: Progress = quiet,
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
    subject = open_subject(name)
    if {"quick", "all"} & {*settings.protocols} and guesses_tokens(subject):
        chosen = tuple(dict.fromkeys((GUESSING, *chosen)))
    needed = needed_of(chosen, settings)
    check_options(chosen, settings)
    if settings.labels is None:
        check_labels(shards, needed, classes=2)
    if test is not None:
        check_labels(test, needed, classes=1)
    bank, queries = Path(shards), None if test is None else Path(test)
    train = encoded(subject, bank, settings, progress)
    tested = encoded(subject, queries, settings, progress) if queries else {}
    if settings.labels is not None:
        table = read_labels(settings.labels)
        train = {encoder: labelled_by(found, table) for encoder, found in train.items()}
    tested, note = joined(train, tested, strict=settings.strict)

    def run(protocol: str) -> ByEncoder:
        if protocol in FROZEN:
            return on_features(protocol, train, tested)
        return on_shards(protocol, subject, bank, queries, settings)

    measures, skipped = measured(chosen, needed, run, say)
    return Evaluation(
        subject, bank, queries, train, dict.fromkeys(train, ()) | measures, tested, note, skipped
    )


def measured(
    chosen: Sequence[str], needed: Sequence[str], run: Callable[[str], ByEncoder], say: Say
) -> tuple[ByEncoder, dict[str, str]]:
    """What each protocol measures, and why those that were left out were.

    Raises:
        SslpipeError: the set is not for one of `needed`.
    """
    measures: ByEncoder = {}
    skipped: dict[str, str] = {}
    for protocol in chosen:
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
    settings: EvalSettings = EvalSettings(),
    *,
    progress: Progress = quiet,
) -> None:
    """Extract and keep the features that `evaluate` starts from: of several ranks, each its share.

    All ranks call it, then one of them `evaluate`, which finds them.

    Raises:
        SslpipeError: as `evaluate`, of the subject and the shards.
    """
    subject = open_subject(name)
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
    """The features of a set by all encoders, from the cache if they are there."""
    extraction = ExtractSettings(
        untrained=settings.untrained, pixels=settings.pixels, device=settings.device
    )
    folder = settings.cache or cache_of(subject)
    return cached_features(subject, shards, folder, extraction, progress=progress)


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


def joined(
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


def needed_of(chosen: Sequence[str], settings: EvalSettings) -> list[str]:
    """The protocols that are errors where a set is not for them; the others are left out then.

    Of `quick` and `all` these are few; documents without labels have none, since they are measured
    by what their model makes of them.
    """
    needed = () if GUESSING in chosen else NEEDED
    return [name for name in chosen if name in (*settings.protocols, *needed)]


def check_options(chosen: Sequence[str], settings: EvalSettings) -> None:
    """Refuse an option that no protocol among `chosen` reads: a user would think that it counted.

    Raises:
        SslpipeError: there is one.
    """
    read: tuple[tuple[str, object, Sequence[str]], ...] = (
        ("epochs", settings.epochs, tuple(TRAINED)),
        ("part", settings.part, (GUESSING,)),
        ("templates", settings.templates, ("zero_shot",)),
    )
    for name, value, readers in read:
        if value is not None and not {*readers} & {*chosen}:
            raise SslpipeError(
                f"--{name} {value}: is for {', '.join(readers)}, and --protocols "
                f"{','.join(settings.protocols)} has none of these; name one, or leave it out"
            )


def check_labels(shards: str | Path, protocols: Sequence[str], *, classes: int) -> None:
    """Look for labels of so many classes in the indexes, before anything is encoded, if need be.

    Raises:
        ShardError: the set or an index is missing or damaged.
        SslpipeError: there are fewer, and some of `protocols` need them.
    """
    labelled = [name for name in protocols if name not in UNLABELLED]
    if not labelled:
        return
    manifest = read_manifest(shards)
    labels = np.concatenate([labels_kept(manifest, shard) for shard in manifest.shards])
    known = labels[labels >= 0]
    if len(np.unique(known)) < classes:
        found = (
            f"the {len(known):,} labels are all the same"
            if len(known)
            else f"none of the {len(labels):,} samples has a label"
        )
        raise SslpipeError(
            f"{shards}: {found}, which is not enough for {', '.join(labelled)}; name other "
            f"protocols ({', '.join(UNLABELLED)}), give --labels, or pack from class folders"
        )


def check_classes(shards: str | Path, test: str | Path, *, strict: bool) -> None:
    """Compare the classes of two sets before any image is read, where both have names.

    Raises:
        ShardError: there is no manifest.
        SslpipeError: as `difference`.
    """
    bank, queries = (read_manifest(path).classes for path in (shards, test))
    if bank and queries:
        difference(bank, queries, strict=strict)


def cache_of(subject: Subject) -> Path:
    """Find the folder that features are kept in: beside a checkpoint, else in the user's cache.

    Raises:
        SslpipeError: nothing can be written there.
    """
    path = Path(subject.name)
    run = path if path.is_dir() else path.parent
    if path.exists() and os.access(run, os.W_OK):
        return run / "features"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "sslpipe" / "features"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SslpipeError(
            f"{folder}: cannot be made ({error.strerror}); name a folder for features: --cache"
        ) from error
    return folder
