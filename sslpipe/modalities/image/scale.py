"""Scaled decoding, decided: the boxes of a sample's views are known before it is decoded, so
nothing finer than its views can show need be decoded.

The rule: a canvas is decoded at 1/f of its sides, for the largest f of 8, 4, 2 at which every box
of every view is at least f times as high and f times as wide as the view that it is resized to: no
view is enlarged by it. A crop that is not resized, or not antialiased, admits no f. So f is a
function of (seed, epoch, uid, indexed sides); it is an instruction to the decoder, `canvases`.

The table of a batch stays in pixels of the nominal canvas, the one that f = 1 would give; `fit`
puts its boxes on the canvas that there is. They land on whole pixels of it: at most half a pixel
beside their place, which is at most half a pixel of the view.

Views of photos enlarged to 2000 x 1496 differ on average by 0.1 to 0.6 levels where boxes lie on
whole pixels of the small canvas (libjpeg's filter), by 1.5 (f = 2) to 2.9 (f = 4) with the boxes
moved to them; a box moved by one pixel of the photo makes 1.5.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from . import ops
from .canvases import Sides, canvas_sides
from .draws import Policy, group_keys
from .headers import MAX_SIDE
from .ops import Draw

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
FACTORS = (8, 4, 2)  # by which libjpeg scales with vector code


def factors(
    policies: Sequence[Policy],
    *,
    seed: int,
    size: int | None,
    epochs: I64,
    uids: I64,
    sides_B2: I64,
    drawn: Mapping[str, F32] | None = None,
) -> I64:
    """(B,): by how much each sample may be scaled down; 1 where its sides are (0, 0), not known.

    size: of the nominal canvas, see `decode`. drawn: the tables of the groups, if they are drawn.
    """
    known_B = sides_B2.all(-1)
    nominal_B2 = np.ones_like(sides_B2)
    nominal_B2[known_B] = nominal(sides_B2[known_B], size)
    # boxes as large as the canvas first: drawing is what costs, and small images need none
    bounds = [largest(nominal_B2, least_box(policy)) for policy in policies]
    factor_B = np.where(known_B, np.min([np.full(len(uids), FACTORS[0]), *bounds], axis=0), 1)
    for policy in policies:
        rows = np.flatnonzero(factor_B > 1)
        if len(rows):
            if drawn:
                boxes_VB4: F64 | F32 = drawn[policy.group][:, rows, policy.steps[0].columns]
            else:
                boxes_VB4 = boxes(policy, seed, epochs[rows], uids[rows], nominal_B2[rows])
            room_B = largest(boxes_VB4[..., 3:1:-1], least_box(policy)).min(0)
            factor_B[rows] = np.minimum(factor_B[rows], room_B)
    return factor_B


def nominal(sides_B2: I64, size: int | None) -> I64:
    """(B, 2): the sides of nominal canvases; photos of one camera are alike, so each size once."""
    if size is None:
        return sides_B2
    found, which_B = np.unique(sides_B2[:, 0] << 32 | sides_B2[:, 1], return_inverse=True)
    pairs = ((each >> 32, each & (1 << 32) - 1) for each in found.tolist())
    canvases = [canvas_sides(pair, size) for pair in pairs]
    return np.array(canvases, dtype=np.int64).reshape(-1, 2)[which_B]


def boxes(policy: Policy, seed: int, epochs: I64, uids: I64, nominal_B2: I64) -> F64:
    """(V, B, 4) of x, y, w, h: the head of the parameter table, drawn as `draws.draw` does."""
    first = policy.steps[0]
    keys = group_keys(policy, seed=seed, epochs=epochs, uids=uids)
    return first.op.draw(Draw(keys, first.stream, nominal_B2, policy.crop.size))[..., :4]


def needed(policies: Sequence[Policy], drawn: Mapping[str, F32], sides_B2: I64) -> I64:
    """(B, 2): of each canvas the first pixel that a view reads, and the one behind the last one.

    Of rows and columns, each by itself: y << 16 | x. drawn: the tables of the groups.
    """
    boxes = [
        table_BP[:, policy.steps[0].columns][:, :4]
        for policy in policies
        for table_BP in drawn[policy.group]
    ]
    first_B2 = boxes[0][:, :2].copy()
    behind_B2 = first_B2 + boxes[0][:, 2:]
    for box_B4 in boxes[1:]:  # one by one: less memory is gone through
        np.minimum(first_B2, box_B4[:, :2], out=first_B2)
        np.maximum(behind_B2, box_B4[:, :2] + box_B4[:, 2:], out=behind_B2)
    # where a crop is padded, boxes lie beside the canvas
    first = np.maximum(first_B2, 0).astype(np.int64)
    behind = np.clip(behind_B2.astype(np.int64), 1, sides_B2[:, ::-1])
    return np.stack([each[:, 1] << 16 | each[:, 0] for each in (first, behind)], -1)


def largest(boxes_2: F64 | F32 | I64, view: Sides) -> I64:
    """(...): the largest factor at which boxes (..., 2), height and width, still fill a view."""
    room = (boxes_2 / np.array(view)).min(-1)
    found: I64 = np.select([room >= f for f in FACTORS], FACTORS, 1)
    return found


def least_box(policy: Policy) -> Sides:
    """The height and width that a group's boxes must keep: its views', or more than there is."""
    crop = policy.crop
    if isinstance(crop, ops.RandomCrop) or not crop.antialias:
        return MAX_SIDE + 1, MAX_SIDE + 1
    return crop.size


def fit(boxes: F64 | F32, nominal_B2: I64, actual_B2: I64) -> F64:
    """Boxes (..., B, 4) of x, y, w, h on nominal canvases -> on the actual ones, whole pixels."""
    ratio_B2 = (actual_B2 / nominal_B2)[..., ::-1]  # x, y
    sides = np.maximum(np.rint(boxes[..., 2:] * ratio_B2), 1)
    corner = np.minimum(np.rint(boxes[..., :2] * ratio_B2), actual_B2[..., ::-1] - sides)
    return np.concatenate([corner, sides], -1)


def fitted(policy: Policy, table_VBP: F32, nominal_B2: I64, actual_B2: I64) -> F32:
    """The table that an executor gets: the boxes of scaled canvases are put on them."""
    scaled_B = (nominal_B2 != actual_B2).any(-1)
    if not scaled_B.any():
        return table_VBP
    placed, columns = table_VBP.copy(), policy.steps[0].columns
    placed[:, scaled_B, columns] = fit(
        table_VBP[:, scaled_B, columns], nominal_B2[scaled_B], actual_B2[scaled_B]
    )
    return placed
