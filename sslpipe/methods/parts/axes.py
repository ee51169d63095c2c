"""The axis letters of batch.py, checked: a loss that is used alone meets any shapes."""

from torch import Tensor

from ...errors import ContractError


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
