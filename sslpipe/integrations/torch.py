"""For trainers that insist on torch's DataLoader; torchdata's keeps the state as well.

```python
from torchdata.stateful_dataloader import StatefulDataLoader

from sslpipe.integrations.torch import StreamDataset, as_is

stream = StreamDataset("demo", shards="shards/sample")
loader = StatefulDataLoader(stream, batch_size=None, collate_fn=as_is)  # batches are made
batch = next(iter(loader))  # a dict: batch["views"]["global"]
state = loader.state_dict()
```

With `num_workers=1` set `persistent_workers=True`: a worker that ends with the epoch forgets where
it was. Both loaders then read ahead; only torchdata's takes that into account in its state.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ..batch import Batch
from ..errors import StateError
from ..pipeline import Pipeline, load
from ..process import process_ranks
from ..recipe import Recipe


class StreamDataset(IterableDataset[dict[str, Any]]):
    """The batches of a pipeline as dicts; the pipeline is loaded in the process that iterates.

    Views are made on the CPU, since a worker must not touch CUDA. Rank and world size are those of
    the process that makes the data set.
    """

    def __init__(
        self, recipe: str | Path | Recipe, *, shards: Any, overrides: Sequence[str] = ()
    ) -> None:
        self._recipe, self._shards, self._overrides = recipe, shards, overrides
        self._ranks = process_ranks()
        self._pipe: Pipeline | None = None
        self._state: dict[str, Any] | None = None

    def _open(self) -> Pipeline:
        if self._pipe is None:
            self._pipe = load(
                self._recipe, shards=self._shards, device="cpu", rank=self._ranks.rank,
                world_size=self._ranks.size, overrides=self._overrides,
            )  # fmt: skip
        if self._state is not None:
            self._pipe.load_state_dict(self._state)
            self._state = None
        return self._pipe

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rest of the current epoch.

        Raises:
            StateError: several workers would each give every batch.
        """
        info = get_worker_info()
        if info is not None and info.num_workers > 1:
            raise StateError(
                f"StreamDataset: num_workers={info.num_workers} would give every batch "
                f"{info.num_workers} times; use 0 or 1: run.workers of the recipe decodes in "
                "processes of its own"
            )
        return map(mapping, self._open())

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._open())

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as `Pipeline.state_dict` says it."""
        return self._open().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, once somebody iterates."""
        self._state = state

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pipeline: a worker loads its own."""
        return {**self.__dict__, "_pipe": None}


def mapping(batch: Batch) -> dict[str, Any]:
    """A batch as a dict whose first tensor has one row a sample.

    Frameworks that look for a batch size take the first tensor's first axis, which is V of views.
    """
    fields = batch.asdict()
    return {"uids": fields.pop("uids"), **fields}


def as_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Leave a batch alone: by default loaders walk through it, all keys included, for 0.4 ms."""
    return batch
