"""ALBERT: one layer, applied again and again, on embeddings narrower than its states.

Lan et al. 2020, arXiv:1909.11942, section 3.1. Module names are those of AlbertModel in
`transformers`, without its pooler, so weights go both ways by name.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .tokens import TokenEncoder, allowed, attend, bert_embeddings, embedded_as_bert, start_bert


class ALBERTLayer(nn.Module):
    """Attention and MLP, a norm behind each sum, GELU by its tanh formula, as officially."""

    def __init__(self, dim: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.full_layer_layer_norm = nn.LayerNorm(dim, eps=1e-12)
        self.attention = nn.ModuleDict(
            {name: nn.Linear(dim, dim) for name in ("query", "key", "value", "dense")}
        )
        self.attention["LayerNorm"] = nn.LayerNorm(dim, eps=1e-12)
        self.ffn, self.ffn_output = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        """Give the states after one pass, (B, L, D); mask: (B, 1, L, L) bool, True = seen."""
        own = self.attention
        q, k, v = (own[name](x_BLD) for name in ("query", "key", "value"))
        rate = self.drop.p if self.training else 0.0
        found = attend(q, k, v, mask, self.heads, dropout=rate)
        x_BLD = own["LayerNorm"](x_BLD + self.drop(own["dense"](found)))
        wide = F.gelu(self.ffn(x_BLD), approximate="tanh")
        states_BLD: Tensor = self.full_layer_layer_norm(x_BLD + self.drop(self.ffn_output(wide)))
        return states_BLD


class ALBERT(TokenEncoder):
    """ALBERT's encoder: each token sees its whole document. Sizes default to ALBERT base's.

    depth: how often the one layer is applied. embedding: width of the embeddings.
    """

    def __init__(
        self,
        view: ViewSpec,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        embedding: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.drop = dim, depth, nn.Dropout(dropout)
        self.length = view.size("L")
        self.embeddings = bert_embeddings(view, embedding)
        layer = nn.ModuleDict(
            {"albert_layers": nn.ModuleList([ALBERTLayer(dim, heads, dropout=dropout)])}
        )
        self.encoder = nn.ModuleDict(
            {
                "embedding_hidden_mapping_in": nn.Linear(embedding, dim),
                "albert_layer_groups": nn.ModuleList([layer]),
            }
        )
        start_bert(self)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """What the output layer is tied to."""
        return cast(nn.Embedding, self.embeddings["word_embeddings"])

    @property
    def layer(self) -> nn.Module:
        """The one layer, which every pass goes through."""
        (group,) = cast(nn.ModuleList, self.encoder["albert_layer_groups"])
        (layer,) = cast(nn.ModuleDict, group)["albert_layers"].children()
        return layer

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the last pass, (B, L, D)."""
        layer = self.layer
        x_BLE = self.drop(embedded_as_bert(self.embeddings, tokens_BL, segments_2BL))
        x_BLD = self.encoder["embedding_hidden_mapping_in"](x_BLE)
        mask = allowed(segments_2BL[0], causal=False)
        for _ in range(self.depth):
            x_BLD = layer(x_BLD, mask)
        states_BLD: Tensor = x_BLD
        return states_BLD
