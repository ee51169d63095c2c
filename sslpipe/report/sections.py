"""Sections of the page that show pictures: neighbours, mistakes, patches, duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..encoders.library_encoders import ViT
from ..evaluate.results import Evaluation
from ..stream.reader import Sample
from .confusion import ConfusionTable, confusion
from .embedding import names_for
from .maps import stratified
from .patches import SeenViews, attention, central_views, heat, in_colours, places, scale_for
from .pictures import SampleFinder, jpeg_uri, png_uri
from .samples import EqualSamples, Look, ReportSettings, equal_samples
from .tables import short_names

I64 = npt.NDArray[np.int64]
SIDE = 96  # pixels of a picture that is shown at half of that, or on a fine screen
HEADS = 6  # of attention that are shown
GROUPS, MEMBERS = 6, 4  # of duplicates that are shown


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture and its caption; `right`: None where nothing is right or wrong."""

    uri: str  # empty: there is no picture
    key: str
    label: str
    right: bool | None = None
    cosine: float | None = None
    text: str = ""  # the beginning of a document


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A query, and for each checkpoint its name, prediction and nearest samples."""

    query: Tile
    found: tuple[tuple[str, str, tuple[Tile, ...]], ...]


@dataclass(frozen=True, slots=True)
class PatchRow:
    """A picture, and for each checkpoint its name, patches as colours, attention and its heads."""

    picture: str
    key: str
    found: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class PatchSection:
    """All rows, the kinds of attention in them, and the size of grid and pictures in words."""

    rows: tuple[PatchRow, ...]
    kinds: tuple[str, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepeatSection:
    """Exact duplicates: groups, samples beyond the first of each, and what is grave about some."""

    groups: int
    surplus: int
    crossing: int
    contradicting: int
    shown: tuple[tuple[Tile, ...], ...]


def tiles(
    finder: SampleFinder, uids: I64, labels: Sequence[str], right: Sequence[bool | None]
) -> list[Tile]:
    """Pictures of samples with their captions; of documents, their beginnings."""
    if not finder.pictured:
        samples = finder.samples(uids)
        worded = zip(samples, labels, right, finder.snippets(samples), strict=True)
        return [Tile("", sample.key, label, ok, text=text) for sample, label, ok, text in worded]
    found = finder.keyed_squares(uids, SIDE)
    return [
        Tile(jpeg_uri(picture), key, label, ok)
        for (key, picture), label, ok in zip(found, labels, right, strict=True)
    ]


def neighbour_rows(
    seen: Sequence[Look], bank: SampleFinder, asked: SampleFinder, settings: ReportSettings
) -> list[QueryRow]:
    """The same queries for every checkpoint, drawn by uid and not by how well they do."""
    first = seen[0].asked
    rows = stratified(first, settings.queries, seed=settings.seed)
    queries = first.at(torch.from_numpy(rows))
    labels = names_for(queries.labels.tolist(), queries.classes)
    shown_queries = tiles(asked, queries.uids.numpy(), labels, [None] * len(rows))
    names = short_names([look.evaluation.subject.name for look in seen])
    found = [found_by(look, bank, rows, settings.neighbours) for look in seen]
    return [
        QueryRow(tile, tuple((name, *each[i]) for name, each in zip(names, found, strict=True)))
        for i, tile in enumerate(shown_queries)
    ]


def found_by(
    look: Look, bank: SampleFinder, rows: I64, count: int
) -> list[tuple[str, tuple[Tile, ...]]]:
    """Prediction and nearest samples of some queries by one checkpoint."""
    guesses = names_for(look.nearest.predicted.numpy()[rows].tolist(), look.asked.classes)
    return [
        (guess, neighbours_of(look, bank, int(row), count))
        for row, guess in zip(rows, guesses, strict=True)
    ]


def neighbours_of(look: Look, bank: SampleFinder, row: int, count: int) -> tuple[Tile, ...]:
    """The nearest samples of one query; fewer where the bank is small."""
    cosines = look.nearest.cosines_QX[row, :count]
    cosines = cosines[cosines.isfinite()]
    near = look.bank.at(look.nearest.rows_QX[row, : len(cosines)])
    label = int(look.asked.labels[row])
    right = [None if label < 0 else number == label for number in near.labels.tolist()]
    labels = names_for(near.labels.tolist(), look.bank.classes)
    made = tiles(bank, near.uids.numpy(), labels, right)
    return tuple(
        replace(tile, cosine=float(cosine)) for tile, cosine in zip(made, cosines, strict=True)
    )


def confusions(seen: Sequence[Look], largest: int) -> list[tuple[str, int, ConfusionTable]]:
    """For each checkpoint its name, how many samples count, and its mistakes; [] without labels."""
    labels = seen[0].asked.labels
    if not bool((labels >= 0).any()):
        return []
    names = short_names([look.evaluation.subject.name for look in seen])
    return [
        (name, len(labels), confusion_of(look, largest))
        for name, look in zip(names, seen, strict=True)
    ]


def confusion_of(look: Look, largest: int) -> ConfusionTable:
    """Count what k-NN took each class for."""
    labels, predicted = look.asked.labels.numpy(), look.nearest.predicted.numpy()
    kinds = max(len(look.asked.classes), 1 + int(max(labels.max(), predicted.max())))
    names = names_for(range(kinds), look.asked.classes)
    return confusion(labels, predicted, names, largest=largest)


def patch_rows(
    seen: Sequence[Look], finder: SampleFinder, settings: ReportSettings
) -> PatchSection | None:
    """Patches and attention of the same pictures; None: no encoder shows its places."""
    if finder.manifest.modality != "image" or not settings.patch_pictures:
        return None
    rows = stratified(seen[0].asked, settings.patch_pictures, seed=settings.seed)
    samples = finder.samples(seen[0].asked.uids.numpy()[rows])
    names = short_names([look.evaluation.subject.name for look in seen])
    looked = [places_of(name, look, samples) for name, look in zip(names, seen, strict=True)]
    known = [each for each in looked if each is not None]
    if not known:
        return None
    colours = in_colours([each.maps_BDhw for each in known])
    attended = [heads_of(each.look, each.views) for each in known]
    found = [
        PatchRow(
            jpeg_uri(known[0].views.pictures_BHWC[i]),
            sample.key,
            tuple(
                (each.name, png_uri(colour[i]), heads[i])
                for each, colour, (_, heads) in zip(known, colours, attended, strict=True)
            ),
        )
        for i, sample in enumerate(samples)
    ]
    kinds = dict.fromkeys(kind for kind, _ in attended if kind)
    sizes = [each.sizes for each in known]
    return PatchSection(tuple(found), tuple(kinds), tuple(dict.fromkeys(sizes)))


@dataclass(frozen=True, slots=True)
class SeenPlaces:
    """What an encoder makes of each place of some pictures, and the views that it was shown."""

    name: str
    look: Look
    views: SeenViews
    maps_BDhw: Tensor

    @property
    def sizes(self) -> str:
        """How many places a picture has, and how large it is shown, in words."""
        return f"{size_of(self.maps_BDhw)} places of {size_of(self.views.views_BCHW)} px"


def places_of(name: str, look: Look, samples: Sequence[Sample]) -> SeenPlaces | None:
    """Show pictures to a checkpoint's encoder; None: it shows no places of them."""
    subject = look.evaluation.subject
    encoder = subject.encoder.cpu()
    views = central_views(subject.recipe, samples, scale=scale_for(encoder))
    maps = None if views is None else places(encoder, views.views_BCHW)
    return None if views is None or maps is None else SeenPlaces(name, look, views, maps)


def size_of(maps: Tensor) -> str:
    """Say height and width of maps (..., H, W): `14 x 14`."""
    return f"{maps.shape[-2]} x {maps.shape[-1]}"


def heads_of(look: Look, views: SeenViews) -> tuple[str, list[tuple[str, ...]]]:
    """The kind of attention, and per picture the maps of all heads together and of some alone."""
    encoder = look.evaluation.subject.encoder
    if not isinstance(encoder, ViT):
        return "", [()] * len(views.pictures_BHWC)
    found = attention(encoder, views.views_BCHW)
    heads = found.maps_BEhw.shape[1]
    shares = [found.maps_BEhw.mean(dim=1), *found.maps_BEhw.unbind(1)[: HEADS if heads > 1 else 0]]
    return found.kind, [tuple(png_uri(heat(m[i])) for m in shares) for i in range(len(shares[0]))]


def repeated(
    evaluation: Evaluation, bank: SampleFinder, asked: SampleFinder
) -> RepeatSection | None:
    """The exact duplicates among all samples; None: nobody knows what their bytes are."""
    features, tested = evaluation.features["trained"], evaluation.tested.get("trained")
    groups = equal_samples(features, tested)
    if groups is None:
        return None
    return RepeatSection(
        len(groups),
        sum(len(group.members) - 1 for group in groups),
        sum(group.crosses for group in groups),
        sum(group.labels_differ for group in groups),
        tuple(group_tiles(group, features.classes, bank, asked) for group in groups[:GROUPS]),
    )


def group_tiles(
    group: EqualSamples, classes: Sequence[str], bank: SampleFinder, asked: SampleFinder
) -> tuple[Tile, ...]:
    """The first members of a group, with where they are from."""
    found: list[Tile] = []
    for of_test, uid, label in group.members[:MEMBERS]:
        (name,) = names_for([label], classes)
        where = f"{name} (test)" if of_test else name
        found += tiles(asked if of_test else bank, np.array([uid]), [where], [None])
    return tuple(found)
