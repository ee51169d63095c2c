"""Parts of methods: heads, decoders, EMA teachers, schedules, fixed position embeddings.

Nothing here knows a batch or a loss. S visible patches, P values of a patch here.
"""

import copy
import importlib
import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import ContractError, ExtraError

M = TypeVar("M", bound=nn.Module)
# by name, because timm, torchvision and many research codes each have their own class
DEPTH_RATES: Mapping[str, str] = MappingProxyType({"DropPath": "drop_prob", "StochasticDepth": "p"})


def library(name: str) -> Any:
    """Import timm or torchvision when it is needed: losses and batches work without them.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraError(
            f"methods: {name} is not installed ({error}); pip install 'sslpipe[train]'"
        ) from error


def feature_dim(encoder: nn.Module, method: str) -> int:
    """`encoder.dim`, D of the features.

    Raises:
        ContractError: the encoder does not say it.
    """
    dim = getattr(encoder, "dim", None)
    if not isinstance(dim, int):
        raise ContractError(
            f"{method} needs encoder.dim, the number of features; {type(encoder).__name__} has "
            f"dim = {dim!r}. Set it to an int, or use backbones.build"
        )
    return dim


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_norm_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear, BN, ReLU per layer, none with a bias; the last layer without ReLU.

    SimCLR's projector: google-research/simclr, model_util.py:141-177 (the last BN: center=False).
    """
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU()]
    last = layers[-2]
    assert isinstance(last, nn.BatchNorm1d)
    # frozen at 0 is the same function as no bias, and every kernel (SyncBN's too) takes it
    last.bias.requires_grad_(False)
    return nn.Sequential(*layers[:-1])


def gelu_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with GELU between them; weights trunc_normal(.02), biases 0."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        linear = nn.Linear(wide, narrow)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Prototypes(nn.Module):
    """Weight-normed linear layer without bias, always in full precision.

    The norm g of every prototype starts at 1 and learns only if `learn_norm`.
    """

    def __init__(self, dim: int, prototypes: int, *, learn_norm: bool) -> None:
        super().__init__()
        self.direction_KD = nn.Parameter(torch.empty(prototypes, dim))
        self.norm_K1 = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_norm)
        nn.init.kaiming_uniform_(self.direction_KD, a=math.sqrt(5))  # nn.Linear's own

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) features in at least fp32 -> (..., K) logits of the same dtype."""
        # not in bf16: its steps of 2^-8 near 1 are a tenth of a nat at a temperature of 0.04
        with torch.autocast(z.device.type, enabled=False):
            weight_KD = self.norm_K1 * F.normalize(self.direction_KD, dim=1)
            return F.linear(z, weight_KD)


class PrototypeHead(nn.Module):
    """DINO's head: 3-layer GELU MLP without BN, l2 norm, prototypes (main_dino.py, DINOHead)."""

    def __init__(self, sizes: Sequence[int], prototypes: int, *, learn_norm: bool) -> None:
        super().__init__()
        self.mlp = gelu_mlp(sizes)
        self.last = Prototypes(sizes[-1], prototypes, learn_norm=learn_norm)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) features -> (..., K) logits."""
        logits: Tensor = self.last(F.normalize(at_least_fp32(self.mlp(features)), dim=-1))
        return logits


class Branch(nn.Module):
    """An encoder with its head: DINO's student, and its teacher."""

    def __init__(self, encoder: nn.Module, head: PrototypeHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, groups: list[Tensor]) -> Tensor:
        """Groups of (V, B, C, H, W) -> (V of all groups, B, K); one encoder pass per group."""
        features = torch.cat([self.encoder(group.flatten(0, 1)) for group in groups])
        logits: Tensor = self.head(features)
        return logits.view(-1, groups[0].shape[1], logits.shape[-1])


def frozen_copy(module: M) -> M:
    """A copy that shares nothing, takes no gradient, and has no dropout or drop path.

    Their rates become 0 instead of relying on eval(): someone who evaluates the copy and calls
    train() afterwards must not switch them on.
    """
    twin = copy.deepcopy(module).requires_grad_(False)
    for part in twin.modules():
        rate = "p" if isinstance(part, _DropoutNd) else DEPTH_RATES.get(type(part).__name__)
        if rate is not None:
            setattr(part, rate, 0.0)
    return twin


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: m * teacher + (1 - m) * student; at m = 1 it stays exactly.

    Parameters only, as in all official codes: the teacher's BN statistics are its own, from its
    own forward passes in train mode. Averaging them too would mix two moving averages.
    """
    tensors: list[Tensor] = list(teacher.parameters())
    torch._foreach_lerp_(tensors, list(student.parameters()), 1.0 - momentum)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to exactly `end` (progress 1)."""
    assert 0.0 <= progress <= 1.0, progress  # beyond 1 it would turn back, a momentum pass 1
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def sincos(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D position embedding with a zero row for the class token: (1, 1 + N, dim) float32.

    facebookresearch/mae, util/pos_embed.py: the first half of the channels encodes the COLUMN
    ("here w goes first"), the second the row; each half is sines, then cosines.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width {dim} of a sin-cos embedding must be a multiple of 4; change it")
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    row_N, column_N = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [position[:, None] * omega for position in (column_N, row_N)]
    patches_ND = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(patches_ND, (0, 0, 1, 0)).float()[None]


def visible_first(hidden_BN: Tensor) -> Tensor:
    """Patch numbers, visible before hidden, each in raster order: (B, N) int64.

    A stable sort and not boolean indexing, whose size would have to come back to the host.
    """
    return hidden_BN.to(torch.uint8).argsort(dim=1, stable=True)


def take(tokens_BSD: Tensor, index_BN: Tensor) -> Tensor:
    """Tokens in the order of `index_BN`."""
    return tokens_BSD.gather(1, index_BN[:, :, None].expand(-1, -1, tokens_BSD.shape[2]))


class MaskedDecoder(nn.Module):
    """MAE's: mask tokens at the hidden places, then a light ViT with its own positions."""

    positions: Tensor

    def __init__(
        self, encoder_dim: int, patch_values: int, grid: tuple[int, int], *, dim: int, heads: int,
        depth: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim % heads:
            raise ValueError(f"decoder_dim = {dim} is no multiple of decoder_heads = {heads}")
        block = library("timm.models.vision_transformer").Block
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos(dim, grid), persistent=False)
        self.blocks = nn.Sequential(*(block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, patch_values)
        self.apply(xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens_BSD: Tensor, order_BN: Tensor) -> Tensor:
        """(B, 1 + S, D) tokens and `visible_first` of the mask -> (B, N, P)."""
        x = self.embed(tokens_BSD)
        missing = order_BN.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1)
        patches = take(patches, order_BN.argsort(dim=1))  # back to raster order
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        pred_BNP: Tensor = self.predict(self.norm(self.blocks(x)))[:, 1:]
        return pred_BNP


def xavier(module: nn.Module) -> None:
    """The official initialisation of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
