"""What the tests of foreign trainers share: a module of one layer that notes what it was fed."""

from torch import nn

from sslpipe.methods import Method, Output
from sslpipe.recipe import parse_recipe

from ..conftest import RECIPE
from ..streaming import load


def small(overrides=()):
    return parse_recipe(RECIPE, path="test.yaml", overrides=overrides)


class Noting(Method):
    """The distance of two views of one layer; `seen` are the uids of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.seen: list[list[int]] = []
        self.progress: list[float] = []

    def forward(self, batch) -> Output:
        self.seen.append(batch.uids.tolist())
        z_VBD = self.encoder(batch.views["global"].mean((3, 4)))
        return Output((z_VBD[0] - z_VBD[1]).square().mean(), {})

    def after_step(self, progress: float) -> None:
        self.progress.append(round(progress, 6))


def uids(shards, count, *overrides):
    """The uids of the first `count` batches, by the plain loop."""
    found = []
    with load(shards, *overrides) as pipe:
        while len(found) < count:
            found += [batch.uids.tolist() for batch in pipe]
    return found[:count]
