"""A server of shards, in a process of its own, that fails at random: the one of the tests."""

import multiprocessing
import random
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.servers import Server

FAULTS = ("500", "drop", "short")
CHANCE = 0.2  # of each request for a tar


class Moody(Server):
    """Fails as its generator says, and counts."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.random, self.failures = random.Random(seed), multiprocessing.Value("q", 0)

    def next_fault(self, path: str) -> str:
        if self.random.random() >= CHANCE:
            return ""
        with self.failures.get_lock():
            self.failures.value += 1
        return self.random.choice(FAULTS)


class FaultyServer:
    """Within `with`, serves a folder at `url`; `failures` counts the answers that were spoilt."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._server = Moody(folder, seed)
        self.url = self._server.url

    @property
    def failures(self) -> int:
        return int(self._server.failures.value)

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._server.serve_forever, daemon=True)
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()
        self._server.server_close()
