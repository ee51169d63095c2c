"""Notice a loss that is not finite, without waiting for the device at every step."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import SslpipeError

NEVER = 2**62


class Guard:
    """Remembers on the device the first step whose loss was not finite.

    Reading the loss at every step would make the host wait for the device at every step. So the
    step number is kept there, in three tiny kernels, and read when metrics are read anyway and
    before a checkpoint is written: no checkpoint ever holds weights of after that step.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._keys: dict[int, list[str]] = {}

    def watch(self, step: int, loss: Tensor, keys: tuple[str, ...]) -> None:
        """Note one batch of a step; never waits."""
        self._keys.setdefault(step, []).extend(keys)
        worst = self._first.clamp(max=step)
        self._first = torch.where(loss.detach().isfinite(), self._first, worst)

    def check(self, world_size: int) -> None:
        """Wait for the device, and for all ranks: they stop together.

        Raises:
            SslpipeError: a loss was not finite.
        """
        if world_size > 1:
            dist.all_reduce(self._first, op=dist.ReduceOp.MIN)
        first = int(self._first)
        if first != NEVER:
            keys = self._keys.get(first, [])
            raise SslpipeError(
                f"step {first}: the loss is not finite; this rank's batch: {', '.join(keys[:8])}"
                f"{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}. Lower the learning "
                "rate, lengthen the warm-up, set train.clip_norm, or train in bf16 or fp32; "
                "the last checkpoint is from before this step"
            )
        self._keys.clear()
