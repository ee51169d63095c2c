"""The forward pass of a method through torch.compile, with what was compiled counted.

Graphs are compiled in the first step; a graph that is compiled later is a recompile: a shape or a
number that is read in the pass was another one. A few are usual (shapes that change are then taken
as such), many cost minutes, and beyond torch's limit of 8 the pass runs uncompiled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BACKEND = "inductor"  # torch's default
FEW = 4  # recompiles that need no word


class Graphs:
    """Compiles graphs by a backend of torch's, and counts them."""

    def __init__(self, backend: str) -> None:
        self._compile: Callable[..., Any] = torch._dynamo.lookup_backend(backend)
        self.count = 0
        self._first: int | None = None
        self._told = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
        """Compile one graph, as torch.compile asks of a backend."""
        self.count += 1
        return self._compile(graph, inputs)

    @property
    def recompiles(self) -> int:
        """How many were compiled since the first step of this process."""
        return 0 if self._first is None else self.count - self._first

    def message(self) -> str | None:
        """Say after a step what there is to say: after the first one, and once of too many."""
        if self._first is None:
            self._first = self.count
            return f"compiled the forward pass: {self.count} graphs"
        if self.recompiles > FEW and not self._told:
            self._told = True
            return (
                f"compile: {self.recompiles} recompiles since the first step; shapes or numbers "
                "of batches change what is compiled: see TORCH_LOGS=recompiles, or set "
                "train.compile to false"
            )
        return None


def compile_forward(module: nn.Module) -> Graphs:
    """Have `module(...)` compiled when it is first called; it stays the module, with its names."""
    graphs = Graphs(BACKEND)
    module.compile(backend=graphs)
    return graphs
