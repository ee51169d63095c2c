"""All that is decided of batches, and nothing that is done: a stage of `bench`.

As the pipeline decides it: what is known before samples are sent to workers is found for many steps
in one go, and with it the tables that need no decoded sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .modalities import Tables
from .modalities.checks import partner_count
from .pipeline import Pipeline
from .stream.booking import Booking
from .stream.flights import USUAL
from .stream.mixture import StepsInARow
from .stream.packed import Packed, Wants
from .stream.partners import PartnerDraw
from .stream.source import Drawn, Share
from .stream.tasks import TRIMMED

DrawnAhead = tuple[Drawn | None, ...]


def deciding(pipe: Pipeline, share: Share) -> Callable[[int], list[Tables]]:
    """What decides all of a step, whose decoded samples look like those of a share at hand."""
    ahead = decided_ahead(pipe)
    return lambda step: tables_of(pipe, as_drawn(share, ahead(step)), step)


def tables_of(pipe: Pipeline, share: Share, step: int) -> list[Tables]:
    """The tables of a step, of a share of step 0."""
    return pipe.decide(share, step, length=pipe.source.row_length(0))


def as_drawn(share: Share, drawn: DrawnAhead) -> Share:
    """The share with the samples for which something was drawn ahead in the places of its own."""
    known = next((each for each in drawn if each and len(each.uids) == len(share.uids)), None)
    if known is None:
        return replace(share, drawn=())
    columns = tuple(
        column._replace(extents=each.extents) if each else column
        for column, each in zip(share.columns, drawn, strict=True)
    )
    return replace(share, uids=known.uids, epochs=known.epochs, columns=columns, drawn=drawn)


def decided_ahead(pipe: Pipeline) -> Callable[[int], DrawnAhead]:
    """What decides of a step all that is decided before its samples are read."""
    source, parts = pipe.source, pipe.parts
    if not isinstance(source, Packed):
        return lambda step: ()
    partners = PartnerDraw(source, partner_count(parts), pipe.recipe.stream.seed)
    booking = Booking(source, parts, max(1, pipe.workers))
    stored = any(part.stored for part in parts)  # then samples are read where they lie

    def found(steps: Sequence[int]) -> list[DrawnAhead]:
        wants = [partners.beside(each) for each in source.planned(steps)]
        if stored:
            return [instructed(pipe, source, each) for each in wants]
        return [each.drawn for each in booking(wants, TRIMMED, [USUAL] * len(parts))]

    in_a_row = StepsInARow(found, samples=source.planned_as)

    def ahead(step: int) -> DrawnAhead:
        source.arrive(step)
        return in_a_row(step)

    return ahead


def instructed(pipe: Pipeline, source: Packed, wants: Wants) -> DrawnAhead:
    """Find what a reader of stored arrays must know; nothing is drawn."""
    samples, _ = source.records(wants)
    extents = samples["extent"].astype(np.int64)
    for part in pipe.parts:
        part.instructions(epochs=wants.epochs, uids=samples["uid"], extents=extents)
    return ()
