"""Encoders of packed rows: tokens (B, L) become hidden states (B, L, D). Written by us, small.

A token attends to its own document alone, and positions start anew with each: three things that
belong together are in the row (`Batch.segments`), so a packed document gives what it gives alone.
Module names are those of `transformers`, so weights go both ways by name: `GPT` is GPT2Model,
`BERT` is BertModel without its pooler.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .albert import ALBERT
from .t5 import T5
from .tokens import (
    TokenEncoder,
    allowed,
    attend,
    bert_embeddings,
    embedded_as_bert,
    start_bert,
    vocabulary_of,
)


class Linear1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's checkpoints have it."""

    def __init__(self, inputs: int, outputs: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight.T, self.bias)


class GPTBlock(nn.Module):
    """Norm, attention, norm, MLP, each added to what came in (Radford et al. 2019)."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        # GPT-2: layers that add to the residual stream start smaller by sqrt(number of them)
        small = 0.02 / (2 * depth) ** 0.5
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ModuleDict(
            {"c_attn": Linear1D(dim, 3 * dim), "c_proj": Linear1D(dim, dim, std=small)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": Linear1D(dim, 4 * dim), "c_proj": Linear1D(4 * dim, dim, std=small)}
        )

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        """Give the states after it, (B, L, D); mask: (B, 1, L, L) bool, True = seen."""
        q, k, v = self.attn["c_attn"](self.ln_1(x_BLD)).chunk(3, dim=-1)
        x_BLD = x_BLD + self.attn["c_proj"](attend(q, k, v, mask, self.heads))
        wide = F.gelu(self.mlp["c_fc"](self.ln_2(x_BLD)), approximate="tanh")
        added: Tensor = self.mlp["c_proj"](wide)
        return x_BLD + added


class GPT(TokenEncoder):
    """GPT-2's decoder: each token sees those before it. Sizes default to GPT-2 small's."""

    def __init__(self, view: ViewSpec, *, dim: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.dim = dim
        self.wte = nn.Embedding(vocabulary_of(view), dim)
        self.length = view.size("L")
        self.wpe = nn.Embedding(view.size("L"), dim)
        self.h = nn.ModuleList(GPTBlock(dim, heads, depth) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=0.02)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """What the output layer is tied to."""
        return self.wte

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the final norm, (B, L, D)."""
        mask = allowed(segments_2BL[0], causal=True)
        x_BLD = self.wte(tokens_BL) + self.wpe(segments_2BL[1])
        for block in self.h:
            x_BLD = block(x_BLD, mask)
        states_BLD: Tensor = self.ln_f(x_BLD)
        return states_BLD


class BERTLayer(nn.Module):
    """Attention and MLP, a norm behind each sum (Devlin et al. 2019)."""

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        norms = [nn.LayerNorm(dim, eps=1e-12) for _ in range(2)]
        projections = {name: nn.Linear(dim, dim) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(projections),
                "output": nn.ModuleDict({"dense": nn.Linear(dim, dim), "LayerNorm": norms[0]}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, 4 * dim)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * dim, dim), "LayerNorm": norms[1]})

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        """Give the states after it, (B, L, D); mask: (B, 1, L, L) bool, True = seen."""
        own, out = self.attention["self"], self.attention["output"]
        q, k, v = (own[name](x_BLD) for name in ("query", "key", "value"))  # type: ignore[index]
        rate = self.drop.p if self.training else 0.0
        found = attend(q, k, v, mask, self.heads, dropout=rate)
        x_BLD = out["LayerNorm"](x_BLD + self.drop(out["dense"](found)))  # type: ignore[index]
        wide = F.gelu(self.intermediate["dense"](x_BLD))
        added = self.drop(self.output["dense"](wide))
        states_BLD: Tensor = self.output["LayerNorm"](x_BLD + added)
        return states_BLD


class BERT(TokenEncoder):
    """BERT's encoder: each token sees its whole document. Sizes default to BERT base's.

    dropout: of embeddings, attention and what layers add, in training; the paper's is 0.1.
    embedding: how wide words and positions are; narrower ones are projected (ELECTRA small). None:
    as wide as the layers.
    """

    def __init__(
        self,
        view: ViewSpec,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        dropout: float = 0.0,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.drop = dim, heads, nn.Dropout(dropout)
        wide = embedding or dim
        self.embeddings = bert_embeddings(view, wide)
        self.embeddings_project = nn.Identity() if wide == dim else nn.Linear(wide, dim)
        layers = nn.ModuleList(BERTLayer(dim, heads, dropout=dropout) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.length = view.size("L")
        start_bert(self)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """What the output layer is tied to."""
        found = self.embeddings["word_embeddings"]
        assert isinstance(found, nn.Embedding)
        return found

    @property
    def positions(self) -> nn.Embedding:
        """The table of positions, (L, embedding)."""
        found = self.embeddings["position_embeddings"]
        assert isinstance(found, nn.Embedding)
        return found

    @property
    def layers(self) -> nn.ModuleList:
        """The BERTLayers, the first one first."""
        found = self.encoder["layer"]
        assert isinstance(found, nn.ModuleList)
        return found

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the last layer, (B, L, D)."""
        x_BLD = self.embeddings_project(self.embedded(tokens_BL, segments_2BL))
        return through_layers(self.layers, x_BLD, segments_2BL[0])

    def embedded(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the embeddings, (B, L, E): as wide as the layers, or what is projected to that."""
        dropped: Tensor = self.drop(embedded_as_bert(self.embeddings, tokens_BL, segments_2BL))
        return dropped


def through_layers(layers: nn.ModuleList, x_BLD: Tensor, documents_BL: Tensor) -> Tensor:
    """Give the states behind BERTLayers, (B, L, D); a token sees its whole document.

    `documents_BL`: the number of each token's document, int64; -1: padding.
    """
    mask = allowed(documents_BL, causal=False)
    for layer in layers:
        x_BLD = layer(x_BLD, mask)
    return x_BLD


TEXT_ENCODERS: Mapping[str, Callable[..., TokenEncoder]] = MappingProxyType(
    {"albert": ALBERT, "bert": BERT, "gpt": GPT, "t5": T5}
)
