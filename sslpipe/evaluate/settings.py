"""What `sslpipe eval` is asked for, and whether sets and options suit it, before any encoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SslpipeError
from ..shards.contents import labels_kept
from ..shards.labels_file import read_labels
from ..shards.manifest import read_manifest
from .classes import difference
from .perplexity import Part
from .protocols import FROZEN, GUESSING, TRAINED, chosen_protocols
from .zero_shot import read_templates

# of `quick` and `all`, what is an error where a set is not for it; the others say so, and go on
NEEDED = ("label_free", "knn", "linear")
# of protocols, what needs no labels
UNLABELLED = ("label_free", GUESSING, "cross_retrieval")


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
    report: bool = False  # one follows, which reads features that no protocol may have asked for
    part: Part | None = None  # documents that perplexity is of; None: those that were held out
    templates: Path | None = None  # of zero_shot, one a line; None: TEMPLATES


AS_SHIPPED = EvalSettings()


def needed_of(chosen: Sequence[str], settings: EvalSettings) -> list[str]:
    """The protocols that are errors where a set is not for them; the others are left out then.

    Of `quick` and `all` these are few; documents without labels have none, since they are measured
    by what their model makes of them.
    """
    needed = () if GUESSING in chosen else NEEDED
    return [name for name in chosen if name in (*settings.protocols, *needed)]


def reads_features(settings: EvalSettings) -> bool:
    """Whether anything starts from frozen features; what does not would encode for nobody."""
    return settings.report or bool({*chosen_protocols(settings.protocols)} & {*FROZEN})


def check_options(chosen: Sequence[str], settings: EvalSettings) -> None:
    """Refuse an option that no protocol among `chosen` reads: a user would think that it counted.

    Files among the options are read, so that what is wrong with them is told before any encoding.

    Raises:
        SslpipeError: there is one, or a file of templates is wrong.
        ShardError: a file of labels is wrong.
    """
    if settings.labels is not None:
        read_labels(settings.labels)
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
    if settings.templates is not None:
        read_templates(settings.templates)


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
