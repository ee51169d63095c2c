from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslpipe.batch import Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.recipe.names import Entry
from tests.view_specs import square


class TinyEncoder(nn.Module):
    """Mean colour and mean square of each channel, then a linear layer: takes every size."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(6, dim)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(tuple(images.shape))
        moments = [images.mean((2, 3)), images.square().mean((2, 3))]
        return self.linear(torch.cat(moments, dim=1))


class Normed(nn.Sequential):
    """A linear layer of images of 8 px, and a batch norm."""

    dim = 6

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6))


def exact_count(mask_MBN: Tensor) -> int | None:
    counts = mask_MBN.sum(-1).unique().tolist()
    return counts[0] if len(counts) == 1 else None


def fake(
    views: dict[str, Tensor],
    masks: dict[str, Tensor] | None = None,
    targets: dict[str, Tensor] | None = None,
    patch_size: int = 4,
) -> tuple[Batch, BatchSpec]:
    """A batch and its spec from tensors; masks and targets belong to group 'global'."""
    masks, targets = masks or {}, targets or {}
    _, size, _, height, width = views["global"].shape
    grid = (height // patch_size, width // patch_size)
    view_specs = {k: ViewSpec(k, len(v), "CHW", tuple(v.shape[2:])) for k, v in views.items()}
    mask_specs = {
        k: MaskSpec("global", len(m), "HW", (patch_size, patch_size), grid, exact_count(m))
        for k, m in masks.items()
    }
    target_specs = {k: TargetSpec("global", len(t), 4) for k, t in targets.items()}
    labels, uids = torch.full((size,), -1), torch.arange(size)
    keys = tuple(map(str, range(size)))
    valid = torch.ones(size, dtype=torch.bool)
    hidden = {name: mask_MBN.sum(-1).cpu().numpy() for name, mask_MBN in masks.items()}
    batch = Batch(
        views=views, masks=masks, hidden=hidden, targets=targets, labels=labels, params={},
        uids=uids, keys=keys, valid=valid, epoch=0, step=0,
    )  # fmt: skip
    return batch, BatchSpec(size, size, view_specs, mask_specs, target_specs, epoch_size=size)


@pytest.fixture
def make_batch() -> Callable[..., tuple[Batch, BatchSpec]]:
    return fake


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return TinyEncoder()


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """Normal numbers of a shape, float64, from a generator of their own."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, **options: Any) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, **options)

    return draw


@pytest.fixture
def views(
    make_batch: Callable[..., tuple[Batch, BatchSpec]], rand: Callable[..., Tensor]
) -> tuple[Batch, BatchSpec]:
    """Two global views of four images of 8 px."""
    return make_batch({"global": rand(2, 4, 3, 8, 8).float()})


@pytest.fixture
def vit() -> nn.Module:
    """A ViT of two narrow blocks with patches of 4 px."""
    torch.manual_seed(0)
    settings = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return build_encoder(Entry("vit_tiny", settings), square(16))


@pytest.fixture
def masked_crops(rand: Callable[..., Tensor]) -> tuple[Batch, BatchSpec]:
    """Two global views of four images with masks of 0 to 9 of 16 patches, and three local views."""
    counts = torch.tensor([[0, 3, 9, 1], [5, 0, 2, 7]])
    order = rand(2, 4, 16).argsort(-1)
    views = {"global": rand(2, 4, 3, 16, 16).float(), "local": rand(3, 4, 3, 8, 8).float()}
    return fake(views, {"blocks": order < counts[..., None]})
