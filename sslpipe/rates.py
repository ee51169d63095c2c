"""The keys of a recipe's train section that say how long it runs and how its rates change."""

from typing import Annotated, Literal

import pydantic

Positive = Annotated[int, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0)]
Info = pydantic.ValidationInfo
Always = pydantic.Field(validate_default=True)


class Rates(pydantic.BaseModel):
    """Part of the train section; train/schedules.py makes rates of it."""

    epochs: Positive
    lr_batch: Positive = 256
    lr_rule: Literal["linear", "sqrt"] = "linear"  # how lr grows with the batch
    schedule: Literal["cosine", "cosine_per_epoch", "multistep"] = "cosine"
    milestones: Annotated[tuple[Positive, ...], Always] = ()  # epochs; multistep only
    gamma: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1  # factor of each milestone
    # cosines are laid over this many times the run, which ends before they do (MSN)
    schedule_stretch: Annotated[float, pydantic.Field(ge=1)] = 1.0
    final_lr: Fraction = 0.0  # absolute, not scaled; cosines only
    final_lr_ratio: Fraction | None = None  # the same, as a share of the peak
    final_weight_decay: Fraction | None = None  # None: constant
    warmup_epochs: Fraction = 0.0
    warmup_lr: Fraction = 0.0  # absolute, where the warm-up starts

    @pydantic.field_validator("milestones")
    @classmethod
    def _fit_the_schedule(cls, value: tuple[int, ...], info: Info) -> tuple[int, ...]:
        """Milestones and the multistep schedule come together, in order, before the end."""
        if (info.data.get("schedule") == "multistep") != bool(value):
            raise ValueError("schedule: multistep needs milestones, and only it has them")
        if list(value) != sorted({*value}) or value[-1:] >= (info.data.get("epochs", 0),):
            raise ValueError("milestones must rise and lie before the last epoch")
        return value

    @pydantic.field_validator("final_lr", "final_lr_ratio")
    @classmethod
    def _one_end(cls, value: float | None, info: Info) -> float | None:
        """A cosine has one end, a multistep schedule none."""
        if value and (info.data.get("schedule") == "multistep" or info.data.get("final_lr")):
            raise ValueError("is for cosines, and one of final_lr and final_lr_ratio is enough")
        return value
