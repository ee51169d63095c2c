'''What a method is: a batch goes in, an Output comes out, and something may happen after the step.

This file knows the contract (batch.py) and nothing of any method. A method of your own is a class
in a package of yours. A recipe names it, `method: {"my_package.mine:Apart": {weight: 0.5}}`, and
nothing else has to be told of it:

```python
import torch
from torch import nn

from sslpipe.batch import Batch, BatchSpec
from sslpipe.methods import Method, Output


class Apart(Method):
    """Two views of an image come together, and each feature keeps a deviation of 1 over images."""

    collapse_causes = "a weight that is too low, or a learning rate that is too high"

    def __init__(self, encoder: nn.Module, spec: BatchSpec, *, weight: float = 1.0) -> None:
        super().__init__()
        spec.require("apart", views={"global": 2})
        self.encoder, self.weight = encoder, weight

    def forward(self, batch: Batch) -> Output:
        z_VBD = torch.stack([self.encoder(view_BCHW) for view_BCHW in batch.views["global"][:2]])
        short = (1 - z_VBD.std(1)).relu().mean()
        loss = (z_VBD[0] - z_VBD[1]).square().mean() + self.weight * short
        return Output(loss, {"short": short.detach()})
```
'''

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..batch import Batch
from ..errors import ContractError


@dataclass(frozen=True, slots=True)
class Output:
    """What a method gives: the loss (a scalar with gradient) and metrics (detached scalars).

    All are means over this rank's samples, left on the device; the caller takes the mean over
    ranks, as DDP does.

    weight: where the loss is a mean over tokens of all ranks, their number by the number of ranks,
    a float32 scalar, equal on all ranks. Accumulated batches then weigh by it, so that the step is
    of the mean over all its tokens. None: they weigh alike.
    terms: where the loss is a sum of means over different numbers, the summands, (K,), with
    gradient; `weight` is then (K,), too, and each term is averaged over its own. None: it is one.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    weight: Tensor | None = None
    terms: Tensor | None = None


def check_output(method: nn.Module, output: object) -> None:
    """Whether a method gave what it should; it costs nothing that waits for the device.

    Raises:
        ContractError: no Output, a loss that cannot be minimised, or metrics that are no scalars.
    """
    name = f"{type(method).__module__}:{type(method).__qualname__}"
    if not isinstance(output, Output):
        raise ContractError(
            f"{name}: forward() returned a {type(output).__name__}; return Output(loss, metrics)"
        )
    for what, value in {"loss": output.loss, **output.metrics}.items():
        if not isinstance(value, Tensor) or value.ndim:
            kind = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(
                f"{name}: forward() returned {what} as {kind}; return a tensor without axes, "
                "such as a mean"
            )
        if value.requires_grad != (what == "loss" and value is output.loss):
            mend = "detach no part that is to learn" if what == "loss" else "write .detach()"
            with_grad = "with" if value.requires_grad else "without"
            raise ContractError(f"{name}: forward() returned {what} {with_grad} gradient; {mend}")


class Sign(NamedTuple):
    """What one logged row tells of one way to collapse."""

    name: str  # unlike those of the method's other signs
    bad: bool  # the row shows this collapse
    said: str  # in words, with the number and its limit


Numbers = Mapping[str, float]  # loss, metrics and monitors of a logged row, the finite ones
# (the row, the largest value of each number in the run so far) -> the sign, None: nothing to judge
Watch = Callable[[Numbers, Numbers], Sign | None]


class Method(nn.Module, ABC):
    """A module that is built as `method(encoder, spec, *, settings)`.

    What a method does not define has the defaults of this class; trainers need not ask whether it
    exists. Buffers must be equal on all ranks by construction (fed by `collectives`, or functions
    of the step): the reference trainer sends them at the start and never again.
    """

    # the loss of outputs that tell nothing, such as ln(classes): a run that stays there is said to
    # learn nothing. None: there is no such number
    chance_loss: float | None = None
    # how a collapse shows in the metrics of this method; train/alarm.py watches the encoder anyway
    collapse_signs: Sequence[Watch] = ()
    # what usually causes it, for the message
    collapse_causes: str = (
        "a target that takes gradients (no stop-gradient), terms against collapse that weigh too "
        "little, a temperature, a momentum, or a learning rate that is too high"
    )

    # the encoders that the method holds, (name, "place.in.the.method"): "student" is trained by
    # gradients, "teacher" follows it; "image" and "text" are two towers. The first is what the
    # paper evaluates: it is kept
    encoders: Sequence[tuple[str, str]] = (("student", "encoder"),)

    @property
    def encoder(self) -> nn.Module:
        """What is kept, evaluated and exported: images (B, C, H, W) -> features (B, D).

        It is the first of `encoders`, by default what a method stores as `self.encoder`.

        Raises:
            NotImplementedError: the method holds no such part.
        """
        part: nn.Module | None = self
        for name in self.encoders[0][1].split("."):
            part = None if part is None else part._modules.get(name)
        if part is None:
            raise NotImplementedError(
                f"{type(self).__name__} keeps no encoder; store one as self.encoder, or say in "
                "`encoders` where it is"
            )
        return part

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Give the loss of one batch; under DDP, of this rank's share."""

    def term_weights(self, batch: Batch) -> Tensor | None:
        """Tell what `Output.weight` of a batch will be, (K,), if its loss has several terms.

        The gradients of terms cannot be told apart, so each must be divided by the number of the
        whole step before it goes backward: accumulated batches are counted first, and held until
        then. None, by default: one term, which is divided at the end of the step, or none.
        """
        return None

    def after_step(self, progress: float) -> None:
        """Do what follows an optimizer step (EMA teachers); by default nothing.

        `progress` is the share of the run that is done, in (0, 1]; 1 = this was the last step.
        """

    def fixed_lr_parameters(self) -> Iterable[nn.Parameter]:
        """Name parameters that keep the peak learning rate (SimSiam's predictor)."""
        return ()

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Name parameters without weight decay, besides biases and norms (MSN's prototypes)."""
        return ()

    def clipped_together(self) -> Iterable[Iterable[nn.Parameter]]:
        """Name the modules whose gradients `train.clip: per_module` clips each for itself (DINOv2).

        None by default: the recipe of such a method may not ask for it.
        """
        return ()
