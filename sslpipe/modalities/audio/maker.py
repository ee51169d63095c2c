"""DO for audio, on the device: int16 crops and tables to views, all samples at once.

Letters: V views, B samples, R = V * B, N samples of all views of a recording.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...device.buffers import Buffers, Memory
from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from .decider import AudioDecider
from .mixing import PartnerOp
from .op import I64, SoundRows
from .policy import SoundPolicy
from .waves import floats


class AudioMaker:
    """Does the ops of a decider's groups."""

    def __init__(self, decider: AudioDecider) -> None:
        self._decider = decider
        self._memory = Buffers()  # fresh pages of waveforms cost a tenth of decoding them
        policies = decider.policies.values()
        samples = sum(policy.count * policy.crop.size for policy in policies)
        crop = max((policy.crop for policy in policies), key=lambda crop: crop.size / crop.rate)
        self.blank = Raw(np.zeros(samples, dtype=np.int16), (crop.size, crop.rate, 1))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Waveforms (V, B, T) or spectrograms (V, B, 1, F, T), and how much of each is real.

        arrays: (N,) int16 of each sample; behind them those of partners, if an op mixes.
        """
        crops_BN, at = stacked(arrays), 0
        made = Made({}, {name: targets[name] for name in self._decider.tasks}, {}, {})
        for group, policy in self._decider.policies.items():
            size = policy.count * policy.crop.size
            waves_BVT = crops_BN[:, at : at + size].reshape(len(crops_BN), policy.count, -1)
            at += size
            turns_V = self._decider.turns.get(group)
            kept = policy.spec.axes == "T" and waves_BVT.device.type == "cpu"
            memory = self._memory if kept else None
            found = views_of(policy, waves_BVT.transpose(0, 1), tables, turns_V, memory)
            made.views[group], made.lengths[group] = found
        return made


def views_of(
    policy: SoundPolicy,
    waves_VBT: Tensor,
    tables: Tables,
    turns_V: I64 | None,
    memory: Memory | None = None,
) -> tuple[Tensor, Tensor]:
    """The views of a group, and their real steps, (V, B) int64; turns_V: see AudioDecider.turns.

    memory: for waveforms that lie on the host.
    """
    device, table_VBP = waves_VBT.device, tables.params[policy.group]
    views, batch = table_VBP.shape[:2]
    table_RP = torch.from_numpy(table_VBP).flatten(0, 1).to(device, non_blocking=True)
    chosen_VB = with_partners(views, batch, turns_V)
    real = np.stack(policy.real_steps(tables.extents))[:, chosen_VB]
    real_SVB = torch.from_numpy(real).to(device, non_blocking=True)
    if turns_V is None:
        waves_VBT = waves_VBT[:, :batch]
    else:
        chosen = torch.from_numpy(chosen_VB).to(device, non_blocking=True)
        waves_VBT = torch.stack([w[rows] for w, rows in zip(waves_VBT, chosen, strict=True)])
    made = floats(waves_VBT, memory).flatten(0, 1)
    for step, real_VB in zip(policy.steps, real_SVB, strict=False):
        table = table_RP[:, step.columns]
        if isinstance(step.op, PartnerOp):
            both = grouped(made, views)
            own, others = both[:, :batch].flatten(0, 1), both[:, batch:].flatten(0, 1)
            real_SVB = real_SVB[..., :batch]
            rows = SoundRows(table, real_VB[:, :batch].flatten(), step.before)
            made = step.op.mixed(own, others, rows)
        else:
            made = step.op.apply(made, SoundRows(table, real_VB.flatten(), step.before))
    cut = tables.length or policy.after.steps
    return grouped(made, views)[..., :cut].to(policy.dtype), real_SVB[-1].clamp_max(cut)


def with_partners(views: int, batch: int, turns_V: I64 | None) -> I64:
    """Which of the recordings of a batch each view is made of: (V, B), or (V, 2 B) with partners.

    The samples themselves stand first, behind them the first partner of each, and so on.
    """
    own_VB = np.tile(np.arange(batch), (views, 1))
    if turns_V is None:
        return own_VB
    return np.concatenate([own_VB, own_VB + batch * (1 + turns_V[:, None])], axis=1)


def grouped(rows: Tensor, views: int) -> Tensor:
    """Rows by view and sample, (V, B, ...)."""
    return rows.reshape(views, len(rows) // views, *rows.shape[1:])


def stacked(arrays: Sequence[Tensor]) -> Tensor:
    """Arrays of one length as (B, N) int16; where they lie evenly in one buffer, nothing moves."""
    if isinstance(arrays, Ragged) and len(arrays) > 1:
        steps, (count,) = np.diff(arrays.offsets_B), arrays.shapes_BD[0]
        width = arrays.dtype.itemsize
        if (steps == steps[0]).all() and steps[0] % width == 0 and steps[0] > 0:
            flat = arrays.flat_N[int(arrays.offsets_B[0]) :]
            whole = flat[: len(flat) // width * width].view(arrays.dtype)
            return whole.as_strided((len(arrays), int(count)), (int(steps[0]) // width, 1))
    return torch.stack(list(arrays))
