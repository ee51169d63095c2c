"""From decoded samples and tables to a batch: everything crosses to the device, then is made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch
from ..device.handoff import Handoff, send_groups
from ..stream.source import Column, Share
from . import Made, Tables
from .parts import Part, merged, tensors
from .returned import check_made, check_views


def make_batch(
    parts: Sequence[Part], share: Share, tables: Sequence[Tables], *, step: int, handoff: Handoff
) -> Batch:
    """Make the batch of global step `step` of a share, with what each part decided for it."""
    rows = share.in_rows()
    given = torch.from_numpy(rows.labels)
    made, masks, labels = make_parts(parts, share.columns, tables, given, handoff=handoff)
    return Batch(
        **made._asdict(),
        masks=masks,
        hidden=merged(table.hidden for table in tables),
        labels=labels,
        params=tensors(merged(table.params for table in tables)),
        uids=torch.from_numpy(rows.uids),
        keys=rows.keys,
        valid=torch.from_numpy(rows.valid),
        epoch=int(rows.epochs[0]),
        step=step,
    )


def make_parts(
    parts: Sequence[Part],
    columns: Sequence[Column],
    tables: Sequence[Tables],
    labels: Tensor,
    *,
    handoff: Handoff,
) -> tuple[Made, dict[str, Tensor], Tensor]:
    """What all makers make of a batch, its masks and its labels.

    Arrays cross to the device where they lie, in one copy a part; the rest in one more.
    columns, tables: of each part, the samples' arrays and what was decided for them.
    """
    arrays = [handoff.send_arrays(column.arrays) for column in columns]
    masks = tensors(merged(table.masks for table in tables))
    targets = tensors(merged(table.targets for table in tables))
    masks_there, targets_there, (labels,) = send_groups(
        handoff.send, [*masks.values()], [*targets.values()], [labels]
    )
    there = dict(zip(targets, targets_there, strict=True))
    made = [
        part.maker.make(column, table, there)
        for part, column, table in zip(parts, arrays, tables, strict=True)
    ]
    for part, views in zip(parts, made, strict=True):
        check_made(part.maker, views)
        check_views(part.maker, views.views, part.decider.views, len(labels))
    whole = Made(*(merged(dicts) for dicts in zip(*made, strict=True)))
    return whole, dict(zip(masks, masks_there, strict=True)), labels
