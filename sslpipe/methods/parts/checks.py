"""What is checked before anything is computed: settings of a method, and axes of a loss's tensors.

Settings are checked when a method is built, and all in the same words; a ValueError here becomes a
RecipeError that says where the setting stands. Axes have the letters of batch.py, and are checked
because a loss that is used alone meets any shapes.
"""

from collections.abc import Sequence

from torch import Tensor

from ...errors import ContractError


def positive(**settings: float | Sequence[float]) -> None:
    """Check what must be above 0; of several numbers, such as layers, there is one or more.

    Raises:
        ValueError: a setting is not.
    """
    for name, value in settings.items():
        parts = value if isinstance(value, Sequence) else [value]
        if not parts or not all(part > 0 for part in parts):
            raise ValueError(f"{name} = {value}; set what is above 0")


def not_negative(**settings: float) -> None:
    """Check weights, and what 0 turns off.

    Raises:
        ValueError: a setting is below 0.
    """
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} = {value}; set 0 or more")


def shares(**settings: float | Sequence[float]) -> None:
    """Check momenta, and shares of a run or a sum.

    Raises:
        ValueError: a setting, or one of its numbers, is outside [0, 1].
    """
    for name, value in settings.items():
        parts = value if isinstance(value, Sequence) else [value]
        if not all(0 <= part <= 1 for part in parts):
            raise ValueError(f"{name} = {value}; set it in [0, 1]")


def check_axes(loss: str, **tensors: Tensor) -> None:
    """Check that axes of one letter have one size; a name's letters follow its last underscore.

    A digit is a size. Shapes only, so that nothing waits for the device. Without it many a wrong
    shape would be broadcast to a number that looks like a loss.

    Raises:
        ContractError: a tensor has other axes than its name says, or two do not fit.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        shape, axes = tuple(tensor.shape), name.rpartition("_")[2]
        if len(shape) != len(axes):
            raise ContractError(
                f"{loss}: {name} has shape {shape}; give it {len(axes)} axes, {' '.join(axes)}"
            )
        for axis, size in zip(axes, shape, strict=True):
            fixed = (int(axis), name) if axis.isdigit() else (size, name)
            expected, where = sizes.setdefault(axis, fixed)
            if size != expected:
                raise ContractError(
                    f"{loss}: {name} has shape {shape}, so {axis} = {size}, but {expected} in "
                    f"{where}; give both the same {axis}"
                )
