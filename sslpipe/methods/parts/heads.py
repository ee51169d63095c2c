"""Projectors, prototypes and other heads of methods. Nothing here knows a batch or a loss."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...encoders.protocols import declared_dim
from ...errors import ContractError


def feature_dim(encoder: nn.Module, method: str) -> int:
    """Ask the encoder for D, the number of its features.

    Raises:
        ContractError: the encoder does not say it.
    """
    dim = declared_dim(encoder)
    if dim is None:
        raise ContractError(
            f"{method} needs encoder.dim, the number of features; {type(encoder).__name__} has no "
            "such int. Set it, or use build_encoder"
        )
    return dim


def at_least_fp32(x: Tensor) -> Tensor:
    """Turn half precision into float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_norm_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Stack linear layers, BN and ReLU, none with a bias; the last layer has no ReLU.

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


def hidden_norm_mlp(
    sizes: Sequence[int],
    *,
    activation: type[nn.Module] = nn.ReLU,
    hidden_bias: bool = False,
    last_bias: bool = False,
    last_norm: bool = False,
) -> nn.Sequential:
    """Stack linear layers, BN and activation, then one linear layer.

    Which linear layers have a bias is the papers' choice: none (SimSiam's projector), the hidden
    ones (BYOL, VICReg), the last one (SimSiam's predictor), all (SwAV, MSN). `last_norm` adds a BN
    without scale and shift.

    Raises:
        ValueError: there is no layer.
    """
    hidden, (wide, narrow) = split_last(sizes)
    layers: list[nn.Module] = []
    for before, after in hidden:
        linear = nn.Linear(before, after, bias=hidden_bias)
        layers += [linear, nn.BatchNorm1d(after), activation()]
    layers.append(nn.Linear(wide, narrow, bias=last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(narrow, affine=False))
    return nn.Sequential(*layers)


def relu_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Stack linear layers with ReLU between them and no norm.

    Raises:
        ValueError: there is no layer.
    """
    hidden, last = split_last(sizes)
    layers = [part for pair in hidden for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(*last))


def split_last(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Pair up the sizes of hidden layers, and of the last one, each (in, out).

    Raises:
        ValueError: there is no layer, or an empty one.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layers of widths {list(sizes[1:])}; give one width or more, each >= 1")
    *hidden, last = itertools.pairwise(sizes)
    return hidden, last


def gelu_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Stack linear layers with GELU between them; weights trunc_normal(.02), biases 0."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.GELU()]
    return nn.Sequential(*layers[:-1]).apply(trunc_normal)


def trunc_normal(module: nn.Module) -> None:
    """Draw the weights of a linear layer at 0 +- .02, cut at 2; biases 0 (for `module.apply`)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class Prototypes(nn.Module):
    """A weight-normed linear layer without bias, which computes in full precision always.

    The norm g of every prototype starts at 1 and learns only if `learn_norm`.
    """

    def __init__(self, dim: int, prototypes: int, *, learn_norm: bool) -> None:
        super().__init__()
        self.direction_KD = nn.Parameter(torch.empty(prototypes, dim))
        self.norm_K1 = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_norm)
        nn.init.kaiming_uniform_(self.direction_KD, a=math.sqrt(5))  # nn.Linear's own

    def forward(self, z: Tensor) -> Tensor:
        """Turn (..., D) features in at least fp32 into (..., K) logits of the same dtype."""
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
        """Turn (..., D) features into (..., K) logits."""
        logits: Tensor = self.last(F.normalize(at_least_fp32(self.mlp(features)), dim=-1))
        return logits


class Branch(nn.Module):
    """An encoder with its head, as DINO's student and its teacher each are one."""

    def __init__(self, encoder: nn.Module, head: PrototypeHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, groups: list[Tensor]) -> Tensor:
        """Turn groups of (V, B, C, H, W) into (V of all groups, B, K); one pass per group."""
        features = torch.cat([self.encoder(group.flatten(0, 1)) for group in groups])
        logits: Tensor = self.head(features)
        return logits.view(-1, groups[0].shape[1], logits.shape[-1])
