"""T5: an encoder of rows of tokens, and a decoder that writes what was cut out of them.

Raffel et al. 2020, arXiv:1910.10683, section 2.1, and the Mesh TensorFlow code, version 1.0: norms
without mean and bias before each sublayer, relative positions as a bias of attention that all
layers share, no scale of attention scores, which the start makes up for. Module names are those of
`transformers`' T5Model, whose weights go both ways by name; its two `embed_tokens` are `shared`.

Positions are relative by place in the row: documents are runs, so they are what they are alone.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .tokens import TokenEncoder, allowed, attend, vocabulary_of

BUCKETS, FARTHEST = 32, 128


class RMSNorm(nn.Module):
    """Scale to a mean square of 1, in float32; no mean is taken off, and no bias added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each vector of (..., D); the dtype stays as it was."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * normed.to(x.dtype)


def bucket_of(distance: Tensor, *, both: bool) -> Tensor:
    """The bucket of key place - query place: exact when near, logarithmic up to 128.

    both: of the 32 buckets, half are for keys behind the query; else those share bucket 0.
    """
    buckets, first = BUCKETS, torch.zeros_like(distance)
    if both:
        buckets //= 2
        first = torch.where(distance > 0, buckets, 0)
        distance = distance.abs()
    else:
        distance = (-distance).clamp_min(0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(FARTHEST / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp_max(buckets - 1)
    return first + torch.where(distance < exact, distance, far)


class T5Attention(nn.Module):
    """Attention in heads, without a scale and without biases of its layers."""

    def __init__(self, dim: int, heads: int, *, relative: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        if relative:
            self.relative_attention_bias = nn.Embedding(BUCKETS, heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=dim**-0.5)
        nn.init.normal_(self.q.weight, std=(dim * (dim // heads)) ** -0.5)
        for layer in (self.k, self.v, self.o):
            nn.init.normal_(layer.weight, std=dim**-0.5)

    def forward(self, x_BLD: Tensor, of_BSD: Tensor, seen: "ScoreBias") -> Tensor:
        """What the queries of `x_BLD` find in `of_BSD`."""
        q, k, v = self.q(x_BLD), self.k(of_BSD), self.v(of_BSD)
        rate = self.dropout if self.training else 0.0
        scores = seen.scores_BHLS.to(q.dtype)
        found = attend(q, k, v, scores, self.heads, dropout=rate, scale=1.0)
        out: Tensor = self.o(found * seen.any_BL1.to(found.dtype))
        return out

    def positions(self, length: int, *, both: bool) -> Tensor:
        """The bias of relative positions, (1, H, L, L)."""
        weight = self.relative_attention_bias.weight
        places = torch.arange(length, device=weight.device)
        buckets = bucket_of(places[None, :] - places[:, None], both=both)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]  # type: ignore[no-any-return]


class ScoreBias:
    """What is added to attention scores: -inf where a query may not look.

    A query that may see no key would become NaN: it sees all, and what it finds is dropped
    (`any_BL1` is False). So it is with a document that was cut out whole.
    """

    def __init__(self, mask_B1LS: Tensor, positions_1HLS: Tensor) -> None:
        some = mask_B1LS.any(-1, keepdim=True)
        self.scores_BHLS = positions_1HLS.masked_fill(some & ~mask_B1LS, -torch.inf)
        self.any_BL1 = some[:, 0]


class Sublayer(nn.Module):
    """A norm and what is behind it; the module called `name` is what `transformers` calls so."""

    def __init__(self, name: str, inner: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, inner)
        self.layer_norm, self.drop = RMSNorm(dim), nn.Dropout(dropout)

    @property
    def inner(self) -> nn.Module:
        """What is behind the norm."""
        return self.get_submodule(self.name)

    def forward(self, x_BLD: Tensor, *args: Any) -> Tensor:
        """Add to `x_BLD` what comes of it; `args`: what the inner module takes beside it."""
        added: Tensor = self.drop(self.inner(self.layer_norm(x_BLD), *args))
        return x_BLD + added


class FeedForward(nn.Module):
    """Two linear layers without biases, a ReLU between them."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.wi.weight, std=dim**-0.5)
        nn.init.normal_(self.wo.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Widen each vector of (..., D), and narrow it again."""
        out: Tensor = self.wo(self.drop(F.relu(self.wi(x))))
        return out


class SelfAttention(T5Attention):
    """Attention of a row to itself."""

    def forward(self, x_BLD: Tensor, seen: ScoreBias) -> Tensor:  # type: ignore[override]
        """What each token finds in its row."""
        return super().forward(x_BLD, x_BLD, seen)


class Stack(nn.Module):
    """Blocks and a norm: `block.N.layer.M` of self-attention, of attention to another row, MLP."""

    def __init__(
        self, dim: int, depth: int, heads: int, width: int, *, dropout: float, reads: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        for number in range(depth):
            own = SelfAttention(dim, heads, relative=number == 0, dropout=dropout)
            layers = [Sublayer("SelfAttention", own, dim, dropout)]
            if reads:
                other = T5Attention(dim, heads, relative=False, dropout=dropout)
                layers.append(Sublayer("EncDecAttention", other, dim, dropout))
            wide = FeedForward(dim, width, dropout)
            layers.append(Sublayer("DenseReluDense", wide, dim, dropout))
            self.block.append(nn.ModuleDict({"layer": nn.ModuleList(layers)}))
        self.final_layer_norm, self.drop = RMSNorm(dim), nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, *args: tuple[Any, ...]) -> Tensor:
        """Go through all blocks; `args`: what each layer of a block takes beside the states."""
        x_BLD = self.drop(x_BLD)
        for block in self.block:
            for layer, more in zip(block.get_submodule("layer").children(), args, strict=True):
                x_BLD = layer(x_BLD, *more)
        states_BLD: Tensor = self.drop(self.final_layer_norm(x_BLD))
        return states_BLD

    def positions(self, length: int, *, both: bool) -> Tensor:
        """The bias of relative positions, (1, H, L, L): the first layer's, for all layers."""
        first = self.get_submodule("block.0.layer.0.SelfAttention")
        assert isinstance(first, SelfAttention)
        return first.positions(length, both=both)


class T5(TokenEncoder):
    """T5's encoder, and its decoder beside it. Sizes default to T5 base's; None: 4 dim.

    dropout: in training; the paper's is 0.1. A row may have any length.
    """

    def __init__(
        self,
        view: ViewSpec,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.width = dim, heads, width or 4 * dim
        self.shared = nn.Embedding(vocabulary_of(view), dim)  # a normal of 1, as torch starts it
        self.length = view.size("L")
        sizes = dim, depth, heads, self.width
        self.encoder = Stack(*sizes, dropout=dropout, reads=False)
        self.decoder = Stack(*sizes, dropout=dropout, reads=True)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """What the output layer is tied to."""
        return self.shared

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the states behind the encoder's last norm, (B, L, D)."""
        mask = allowed(segments_2BL[0], causal=False)
        seen = ScoreBias(mask, self.encoder.positions(tokens_BL.shape[1], both=True))
        states_BLD: Tensor = self.encoder(self.shared(tokens_BL), (seen,), ())
        return states_BLD

    def written(
        self, tokens_BT: Tensor, documents_BT: Tensor, read_BLD: Tensor, documents_BL: Tensor
    ) -> Tensor:
        """Give the states of the decoder, (B, T, D): of tokens that were written already.

        Each sees those before it in its document, and of `read_BLD`, the encoder's states, its
        document.
        """
        mask = allowed(documents_BT, causal=True)
        own = ScoreBias(mask, self.decoder.positions(tokens_BT.shape[1], both=False))
        across = (documents_BT[:, :, None] == documents_BL[:, None, :])[:, None]
        other = ScoreBias(across, read_BLD.new_zeros((1, 1, *across.shape[2:])))
        states_BTD: Tensor = self.decoder(self.shared(tokens_BT), (own,), (read_BLD, other), ())
        return states_BTD
