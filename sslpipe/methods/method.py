"""What a method is: a batch goes in, an Output comes out, and something may happen after the step.

It knows the contract (batch.py) and nothing of any method.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..batch import Batch


@dataclass(frozen=True, slots=True)
class Output:
    """The loss (a scalar with gradient) and metrics (detached scalars, left on the device).

    Means over this rank's samples; the mean over ranks is the caller's, as DDP takes it.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Method(Protocol):
    """A module that is built as `method(encoder, spec, *, settings)`.

    Its buffers must be equal on all ranks by construction (fed by `collectives`, or functions of
    the step): the trainer sends them at the start and never again.

    Four more members are optional, and read by the trainer where they exist:
    `fixed_lr_parameters() -> Iterable[nn.Parameter]` keep the peak learning rate (SimSiam's
    predictor); `undecayed_parameters() -> Iterable[nn.Parameter]` get no weight decay (MSN's
    prototypes); `clipped_together() -> Iterable[Iterable[nn.Parameter]]` are the modules of
    `train.clip: per_module` (DINOv2, MSN); `chance_loss: float` is the loss of outputs that tell
    nothing, e.g. ln(classes): a run whose loss stays there is said to learn nothing.
    """

    @property
    def encoder(self) -> nn.Module:
        """What is kept, evaluated and exported: images (B, C, H, W) -> features (B, D)."""

    def __call__(self, batch: Batch) -> Output:
        """The loss of one batch; under DDP, of this rank's share."""

    def after_step(self, progress: float) -> None:
        """What follows an optimizer step (EMA teachers); `progress` in (0, 1], 1 = last step."""
