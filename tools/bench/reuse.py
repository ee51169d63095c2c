"""What an adapter costs a batch, beside the bare loop over the same batches at hand.

    python tools/bench/reuse.py [--batches 3000]

The goal is 2 % of a step of 10 ms: 200 us. Each way takes the same ready batches, so that nothing
but its own Python is measured; Lightning and Accelerate take the pipeline itself and add nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from statistics import median
from types import SimpleNamespace

from provenance import ROOT, row
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import sslpipe
from sslpipe.integrations.torch import StreamDataset, as_is, mapping
from sslpipe.integrations.transformers import Endless

STEP_US = 10_000
REPEATS = 7


class Ready:
    """A batch, given again and again as a pipeline gives its epoch."""

    def __init__(self, batch: sslpipe.Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __iter__(self):
        return (self.batch for _ in range(self.count))

    def __len__(self) -> int:
        return self.count

    def state_dict(self) -> dict[str, int]:
        return {"step": 0}


class ReadyDataset(StreamDataset):
    """A StreamDataset whose pipeline is ready."""

    def __init__(self, ready: Ready) -> None:
        super().__init__("demo", shards=None)
        self._pipe = ready


def watched(ready: Ready) -> Iterable[sslpipe.Batch]:
    """The batches of a pipeline that tells a Watching of them."""
    from sslpipe.watching import Watching

    run = SimpleNamespace(prefetch=2)
    pipe = SimpleNamespace(
        recipe=SimpleNamespace(run=run, path=""), device=SimpleNamespace(type="cpu")
    )
    observer = Watching(pipe, 1)
    observer._taken = 10  # past the steps at rest
    for batch in ready:
        observer.asked()
        observer.given()
        observer._taken = 10
        yield batch


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batches", type=int, default=3000)
    count = options.parse_args().batches
    with sslpipe.load("demo", shards=ROOT / "shards" / "sample", device="cpu") as pipe:
        ready = Ready(next(iter(pipe)), count)
    dataset = ReadyDataset(ready)
    ways: dict[str, Callable[[], Iterable[object]]] = {
        "bare loop": lambda: ready,
        "mapping": lambda: map(mapping, ready),
        "DataLoader": lambda: DataLoader(dataset, batch_size=None, collate_fn=as_is),
        "StatefulDataLoader": lambda: StatefulDataLoader(
            dataset, batch_size=None, collate_fn=as_is
        ),
        "Trainer of Hugging Face": lambda: (
            b for _, b in zip(range(count), Endless(ready), strict=False)
        ),
        "watch": lambda: watched(ready),
    }
    bare, figures = 0.0, []
    for name, batches in ways.items():
        cost = median(microseconds(batches(), count) for _ in range(REPEATS))
        bare = bare or cost
        figures.append(f"{name} {cost - bare:.1f} us ({(cost - bare) / STEP_US:.2%})")
        print(figures[-1])
    print(row("; ".join(figures[1:]), "torchdata", "transformers"))


def microseconds(batches: Iterable[object], count: int) -> float:
    """For each batch."""
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / count * 1e6


if __name__ == "__main__":
    main()
