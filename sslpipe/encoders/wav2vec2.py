"""wav2vec 2.0's network: waveforms (B, T) become frames (B, N, D), and features (B, D).

Baevski et al. 2020, arXiv:2006.11477; fairseq, models/wav2vec/wav2vec2.py. Module names are those
of `transformers`, so weights go both ways by name into its Wav2Vec2Model.
Letters: N frames that the convolutions make of a waveform, C channels of theirs.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .protocols import Encoder
from .tokens import attend

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


class WaveConv(nn.Module):
    """A convolution over time without padding, a norm and GELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, norm: nn.Module | None, *,
        bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        if norm is not None:
            self.layer_norm = norm

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Give (B, outputs, (T - kernel) // stride + 1)."""
        x_BCT = self.conv(x_BCT)
        norm = self._modules.get("layer_norm")
        if isinstance(norm, nn.LayerNorm):
            x_BCT = norm(x_BCT.mT).mT
        elif norm is not None:
            x_BCT = norm(x_BCT)
        return F.gelu(x_BCT)


class PlaceConv(nn.Module):
    """Positions by a grouped convolution over what is near, with weight norm and GELU."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4.0 / (kernel * dim)))
        nn.init.zeros_(cast(Tensor, conv.bias))
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x_BND: Tensor) -> Tensor:
        """What is added to the frames, (B, N, D); an even kernel makes one too many."""
        added_BDN = self.conv(x_BND.mT)[..., : x_BND.shape[1]]
        return F.gelu(added_BDN.mT)


class WaveLayer(nn.Module):
    """Attention over all frames and an MLP, a norm behind each sum."""

    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.attention = nn.ModuleDict({name: nn.Linear(dim, dim) for name in names})
        self.layer_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.ModuleDict(
            {"intermediate_dense": nn.Linear(dim, inner), "output_dense": nn.Linear(inner, dim)}
        )
        self.final_layer_norm = nn.LayerNorm(dim)
        for part in self.modules():
            if isinstance(part, nn.Linear):  # init_bert_params
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, x_BND: Tensor, seen_B11N: Tensor | None) -> Tensor:
        """One layer; `seen_B11N`, bool: False is padding, to which no frame attends."""
        q, k, v = (self.attention[name](x_BND) for name in ("q_proj", "k_proj", "v_proj"))
        rate = self.drop.p if self.training else 0.0
        found = attend(q, k, v, seen_B11N, self.heads, dropout=rate)
        x_BND = self.layer_norm(x_BND + self.drop(self.attention["out_proj"](found)))
        wide = F.gelu(self.feed_forward["intermediate_dense"](x_BND))
        added = self.drop(self.feed_forward["output_dense"](wide))
        states_BND: Tensor = self.final_layer_norm(x_BND + added)
        return states_BND


class Wav2Vec2Encoder(Encoder):
    """Convolutions make frames of a waveform, a transformer relates them. Sizes are the base's.

    conv_norm "group": one group norm, of each channel over time, after the first convolution; over
    padding, too, as officially. "layer": a layer norm after each, and biases, as in the large
    model. inner: the width of the MLPs, 4 dim by default. dropout: of what the transformer takes
    and its layers add, and of attention, in training; officially 0.1. layer_drop: how often a layer
    is passed by, officially 0.05; it is computed all the same, so that no rank lacks gradients.
    """

    def __init__(
        self,
        view: ViewSpec,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        inner: int | None = None,
        conv_dim: int = 512,
        kernels: tuple[int, ...] = KERNELS,
        strides: tuple[int, ...] = STRIDES,
        conv_norm: Literal["group", "layer"] = "group",
        position_kernel: int = 128,
        position_groups: int = 16,
        dropout: float = 0.0,
        layer_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_wave(view, kernels, strides)
        if dim % heads or dim % position_groups:
            raise ValueError(
                f"dim = {dim} is no multiple of heads = {heads} and position_groups = "
                f"{position_groups}; set one of them"
            )
        self.dim, self.conv_dim = dim, conv_dim
        self.kernels, self.strides, self.layer_drop = kernels, strides, layer_drop
        self.masked_spec_embed = nn.Parameter(torch.rand(dim))
        layers = wave_convs(conv_dim, kernels, strides, conv_norm)
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList(layers)})
        self.feature_projection = nn.ModuleDict(
            {"layer_norm": nn.LayerNorm(conv_dim), "projection": nn.Linear(conv_dim, dim)}
        )
        self.drop = nn.Dropout(dropout)
        blocks = (WaveLayer(dim, heads, inner or 4 * dim, dropout) for _ in range(depth))
        self.encoder = nn.ModuleDict(
            {
                "pos_conv_embed": PlaceConv(dim, position_kernel, position_groups),
                "layer_norm": nn.LayerNorm(dim),
                "layers": nn.ModuleList(blocks),
            }
        )

    @property
    def hop(self) -> int:
        """Samples between the beginnings of two frames: 320 with the default convolutions."""
        return math.prod(self.strides)

    @property
    def field(self) -> int:
        """Samples that a frame sees: 400 with the default convolutions."""
        steps = itertools.accumulate(self.strides[:-1], operator.mul, initial=1)
        return 1 + sum((k - 1) * step for k, step in zip(self.kernels, steps, strict=True))

    def frames(self, samples: int) -> int:
        """How many frames the convolutions make of so many samples, N; 0: too few for one."""
        return conv_frames(samples, self.kernels, self.strides)

    def real_frames(self, lengths_B: Tensor, frames: int) -> Tensor:
        """Tell which of `frames` see no padding, (B, N) bool; the first one always counts.

        `lengths_B`: how many samples are sound, of each waveform.
        """
        real_B = (lengths_B - self.field).div(self.hop, rounding_mode="floor") + 1
        number_N = torch.arange(frames, device=lengths_B.device)
        return number_N < real_B.clamp_min(1)[:, None]

    def features(self, waves_BT: Tensor) -> Tensor:
        """Give what the convolutions make, (B, N, conv_dim), before any norm of all channels."""
        x_BCT: Tensor = waves_BT[:, None]
        for layer in cast(nn.ModuleList, self.feature_extractor["conv_layers"]):
            x_BCT = layer(x_BCT)
        return x_BCT.mT

    def normed(self, features_BNC: Tensor) -> Tensor:
        """Give the features through their layer norm, which quantisers and transformer take."""
        features: Tensor = self.feature_projection["layer_norm"](features_BNC)
        return features

    def context(
        self,
        normed_BNC: Tensor,
        *,
        hidden_BN: Tensor | None = None,
        real_BN: Tensor | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """Give what the transformer makes of `normed` features, (B, N, D).

        `hidden_BN`, bool: the learned vector stands for these frames. `real_BN`, bool: False is
        padding; it is set to 0 and no frame attends to it. `layers`: the states after so many.
        """
        x_BND: Tensor = self.drop(self.feature_projection["projection"](normed_BNC))
        if hidden_BN is not None:
            x_BND = torch.where(hidden_BN[..., None], self.masked_spec_embed.to(x_BND.dtype), x_BND)
        if real_BN is not None:
            x_BND = x_BND * real_BN[..., None]
        x_BND = x_BND + self.encoder["pos_conv_embed"](x_BND)
        x_BND = self.drop(self.encoder["layer_norm"](x_BND))
        seen_B11N = None if real_BN is None else real_BN[:, None, None]
        for layer in cast(nn.ModuleList, self.encoder["layers"])[:layers]:
            x_BND = self.passed_by(layer(x_BND, seen_B11N), x_BND)
        return x_BND

    def passed_by(self, after: Tensor, before: Tensor) -> Tensor:
        """Drop a layer now and then, in training; torch's generator decides, keyed by the step."""
        if not self.training or not self.layer_drop:
            return after
        return torch.where(torch.rand((), device=after.device) < self.layer_drop, before, after)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Average what is made of the frames of waveforms (B, T): (B, D).

        Samples that are exactly 0 at the end are padding, and their frames are left out.
        """
        normed_BNC = self.normed(self.features(images_BCHW))
        real_BN = self.real_frames(sounding(images_BCHW), normed_BNC.shape[1])
        states_BND = self.context(normed_BNC, real_BN=real_BN) * real_BN[..., None]
        return states_BND.sum(1) / real_BN.sum(1, keepdim=True)


def sounding(waves_BT: Tensor) -> Tensor:
    """Count the samples up to the last one that is not 0, (B,) int64."""
    number_T = torch.arange(1, waves_BT.shape[1] + 1, device=waves_BT.device)
    return ((waves_BT != 0) * number_T).amax(1)


def wave_convs(
    dim: int, kernels: Sequence[int], strides: Sequence[int], norm: Literal["group", "layer"]
) -> list[WaveConv]:
    """Make the convolutions of a feature encoder, all of one width."""

    def norm_of(number: int) -> nn.Module | None:
        if norm == "layer":
            return nn.LayerNorm(dim)
        return None if number else nn.GroupNorm(dim, dim)

    return [
        WaveConv(dim if i else 1, dim, kernel, stride, norm_of(i), bias=norm == "layer")
        for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
    ]


def conv_frames(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """How many frames convolutions without padding make of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def check_wave(view: ViewSpec, kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a ValueError unless convolutions make at least one frame of the waveforms."""
    if view.axes != "T":
        raise ValueError(
            f"views {view.group!r} are {view.shown} of axes {view.axes}, not waveforms of axes T; "
            "choose a backbone for them"
        )
    if len(kernels) != len(strides):
        raise ValueError(
            f"kernels = {list(kernels)} and strides = {list(strides)}; give each convolution one "
            "of both"
        )
    if not conv_frames(view.size("T"), kernels, strides):
        raise ValueError(
            f"views {view.group!r} of {view.shown} samples are too short for kernels = "
            f"{list(kernels)} and strides = {list(strides)}; crop longer ones"
        )
