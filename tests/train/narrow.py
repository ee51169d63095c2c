"""Train the narrowest network for two steps, as the script of a test: a crash would end pytest."""

import torch

from sslpipe.batch import Batch, BatchSpec, ViewSpec
from sslpipe.recipe import parse_recipe
from sslpipe.train.run import initial_method, prepare_run

RECIPE = """
stream: {batch_size: 32}
views: {global: {count: 2, ops: [Normalize]}}
method: {simclr: {projector: [16, 8]}}
train: {backbone: {cifar_resnet: {width: 8}}, optimizer: {sgd: {lr: 0.1}}, epochs: 1}
"""
SPEC = BatchSpec(32, 32, {"global": ViewSpec("global", 2, "CHW", (3, 32, 32))}, {}, {})


class Pipe:
    """As much of a pipeline as `prepare_run` asks for."""

    recipe, spec, device = parse_recipe(RECIPE), SPEC, torch.device("cpu")
    rank, world_size = 0, 1

    def __len__(self):
        return 2


def batch():
    """32 samples of noise."""
    return Batch(
        views={"global": torch.randn(2, 32, 3, 32, 32)}, masks={}, hidden={}, targets={}, params={},
        labels=torch.zeros(32), uids=torch.arange(32), keys=("k",) * 32,
        valid=torch.ones(32, dtype=torch.bool), epoch=0, step=0,
    )  # fmt: skip


def main():
    method = initial_method(Pipe.recipe, SPEC)
    method.to(memory_format=torch.channels_last)  # as a user may hand it over
    run = prepare_run(Pipe(), method, Pipe.recipe.train)
    for _ in range(2):
        run.optimizer.zero_grad()
        method(batch()).loss.backward()
        run.optimizer.step()
    assert all(p.is_contiguous() for p in method.parameters()), "weights are not contiguous"


if __name__ == "__main__":
    main()
