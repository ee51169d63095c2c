"""Will a model fit? Its weights are counted before any of them has memory."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import RecipeError
from ..memory import free_host, sized
from ..process import node_ranks
from ..recipe import Recipe

BEYOND = 4  # times the free memory, at which no more is built: what is made for a while counts, too


def check_model_size(recipe: Recipe, build: Callable[[], nn.Module]) -> None:
    """Build a model without memory for its weights (torch's device `meta`), and count them.

    What cannot be built so, such as a user's own method that looks at its weights, is not counted.

    Raises:
        RecipeError: the weights alone need more than a rank's share of the memory that is free.
    """
    free = free_host()
    most = None if free is None else free // node_ranks()
    if most is None:
        return
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"), MostBytes(BEYOND * most):
            count, size = counted(build())
    except BeyondMostError as error:
        raise too_large(recipe, f"more than {sized(error.found)}", most) from None
    except RuntimeError:
        return
    if size > most:
        raise too_large(recipe, f"{count:,} weights, {sized(size)}", most)


def counted(model: nn.Module) -> tuple[int, int]:
    """How many parameters and buffers a model has, and their bytes."""
    tensors = [*chain(model.parameters(), model.buffers())]
    return sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)


def too_large(recipe: Recipe, what: str, free: int) -> RecipeError:
    """What is said of a model that does not fit."""
    assert recipe.train is not None
    assert recipe.method is not None
    backbone, method = recipe.train.backbone, recipe.method
    return RecipeError(
        f"{backbone.where}: {backbone.name} with {method.name} ({method.where}) has {what}, and a "
        f"rank here has {sized(free)} of memory free; choose smaller sizes of one of them, or "
        "another machine"
    )


class BeyondMostError(Exception):
    """More bytes were asked for than may be."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class MostBytes(TorchDispatchMode):
    """Adds up the storages of the tensors that are made inside; it stops at `most` bytes.

    A depth of thousands would be built for minutes, and its modules have memory of their own.
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.found = most, 0
        self._known: set[int] = set()  # storages, by where they are kept

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what is asked for, and count what comes out.

        Raises:
            BeyondMostError: it is too much.
        """
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in self._known:
                self._known.add(each.untyped_storage()._cdata)
                self.found += each.untyped_storage().nbytes()
        if self.found > self.most:
            raise BeyondMostError(self.found)
        return made
