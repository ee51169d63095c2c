"""DO for audio, on the device: int16 crops and tables to views, all samples at once.

Letters: V views, B samples, R = V * B, N samples of all views of a recording.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from .decider import AudioDecider
from .op import SoundRows
from .policy import SoundPolicy
from .waves import floats


class AudioMaker:
    """Does the ops of a decider's groups."""

    def __init__(self, decider: AudioDecider) -> None:
        self._decider = decider
        policies = decider.policies.values()
        samples = sum(policy.count * policy.crop.size for policy in policies)
        crop = max((policy.crop for policy in policies), key=lambda crop: crop.size / crop.rate)
        self.blank = Raw(np.zeros(samples, dtype=np.int16), (crop.size, crop.rate, 1))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Waveforms (V, B, T) or spectrograms (V, B, 1, F, T), and how much of each is real."""
        crops_BN, at = stacked(arrays), 0
        made = Made({}, {name: targets[name] for name in self._decider.tasks}, {}, {})
        for name, policy in self._decider.policies.items():
            size = policy.count * policy.crop.size
            waves_BVT = crops_BN[:, at : at + size].unflatten(1, (policy.count, -1))
            at += size
            self._group(policy, waves_BVT.transpose(0, 1), tables, made)
        return made

    def _group(self, policy: SoundPolicy, waves_VBT: Tensor, tables: Tables, made: Made) -> None:
        """Put the views of a group, and their lengths, into `made`."""
        device = waves_VBT.device
        table_VBP = tables.params[policy.group]
        real = np.stack(policy.real_steps(tables.extents))  # (ops + 1, B)
        table_RP = torch.from_numpy(table_VBP).flatten(0, 1).to(device, non_blocking=True)
        real_SR = torch.from_numpy(np.tile(real, policy.count)).to(device, non_blocking=True)
        views = floats(waves_VBT).flatten(0, 1)
        for step, real_R in zip(policy.steps, real_SR, strict=False):
            rows = SoundRows(table_RP[:, step.columns], real_R, step.before)
            views = step.op.apply(views, rows)
        made.views[policy.group] = views.unflatten(0, waves_VBT.shape[:2]).to(policy.dtype)
        made.lengths[policy.group] = real_SR[-1].view(waves_VBT.shape[:2])


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
