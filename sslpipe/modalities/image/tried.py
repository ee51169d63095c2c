"""Ops and tasks of a user's own, tried on noise before any data is read.

What one would spoil silently is told here: images of another size or type, numbers that are none,
and what is random without a key, so that a resumed run would see other views.
"""

import numpy as np
import torch

from ...batch import ViewSpec
from ...rng import Keys
from ..returned import (
    check_finite,
    check_image,
    check_keyed,
    check_shape,
    check_targets,
    check_type,
)
from .ops import Draw, Op, OwnPixels
from .pretext import Pretext

SAMPLES = 4
SIDES = (75, 100)  # of the canvases that it is tried on, in pixels


def try_op(op: Op, *, views: int, size: tuple[int, int]) -> None:
    """Draw for some samples of an image group, and make images of noise with what was drawn.

    Raises:
        ContractError: what it returns is not what it said, or is random without a key.
    """
    uids = np.arange(SAMPLES, dtype=np.int64)
    keys = Keys(0, uids * 0, uids, np.arange(views, dtype=np.int64))
    sizes_B2 = np.tile(np.array(SIDES, dtype=np.int64), (SAMPLES, 1))
    table, again = (np.asarray(op.draw(Draw(keys, "tried", sizes_B2, size))) for _ in range(2))
    what = "draw() returned a table"
    check_shape(op, what, table.shape, (views, SAMPLES, len(op.columns)))
    check_finite(op, "draw()", torch.from_numpy(table))
    check_keyed(op, "draw()", np.array_equal(table, again))
    assert isinstance(op, OwnPixels)
    rows_RP = table.astype(np.float32).reshape(-1, table.shape[-1])
    noise = torch.rand(len(rows_RP), 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # an op that uses torch's generator is refused below
        made = [op.apply(noise.clone(), rows_RP) for _ in range(2)]
    check_image(op, made[0], noise)
    check_finite(op, "apply()", made[0])
    check_keyed(op, "apply()", torch.equal(*made))


def try_task(made: Pretext, spec: ViewSpec) -> None:
    """Try a user's own task on views of noise; `spec`: of the group before it.

    Raises:
        ContractError: what it returns is not what it said, or is random without a key.
    """
    uids = np.arange(SAMPLES, dtype=np.int64)
    table, again = (made.draw(seed=0, epochs=uids * 0, uids=uids) for _ in range(2))
    noise = torch.rand(spec.count, SAMPLES, *spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # a task that uses torch's generator is refused below
        (views, targets), (other, _) = (
            made.apply(noise.clone(), table, torch.from_numpy(table)) for _ in range(2)
        )
    check_targets(made.task, targets, made.spec, SAMPLES)
    check_type(made.task, "apply() returned views", views.dtype, torch.float32)
    check_finite(made.task, "apply()", views)
    check_keyed(made.task, "draw()", np.array_equal(table, again))
    check_keyed(made.task, "apply()", torch.equal(views, other))
