"""Encoders of packed rows: tokens (B, L) become hidden states (B, L, D). Written by us, small.

A token attends to its own document alone, and positions start anew with each: three things that
belong together are in the row (`Batch.segments`), so a packed document gives what it gives alone.
Module names are those of `transformers`, so weights go both ways by name: `GPT` is GPT2Model,
`BERT` is BertModel without its pooler.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .protocols import Encoder

PAD = 0  # the id of padding in every vocabulary of ours


class TokenEncoder(Encoder):
    """Rows of tokens become hidden states; pooled, features of a row."""

    word: nn.Embedding  # (vocabulary, D), which output layers are tied to

    @abstractmethod
    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the last norm, (B, L, D).

        `segments_2BL` is what `Batch.segments` holds: the number of the document of each token, -1:
        padding, and its position in it.
        """

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Average the hidden states of each row of tokens (B, L) as one document, (B, D)."""
        tokens_BL = images_BCHW
        real_BL = tokens_BL != PAD
        places_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        segments_2BL = torch.stack([real_BL.long() - 1, places_BL])
        states_BLD = self.hidden(tokens_BL, segments_2BL) * real_BL[..., None]
        return states_BLD.sum(1) / real_BL.sum(1, keepdim=True).clamp_min(1)


def allowed(documents_BL: Tensor, *, causal: bool) -> Tensor:
    """Which keys a query may see, (B, 1, L, L) bool: of its document; causal: none behind it."""
    same_BLL = documents_BL[:, :, None] == documents_BL[:, None, :]
    return (same_BLL.tril() if causal else same_BLL)[:, None]


def attend(q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention in several heads, (B, L, D)."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q_BLD, k_BLD, v_BLD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Linear1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's checkpoints have it."""

    def __init__(self, inputs: int, outputs: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add."""
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
        """One layer."""
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
        documents_BL, positions_BL = segments_2BL
        mask = allowed(documents_BL, causal=True)
        x_BLD = self.wte(tokens_BL) + self.wpe(positions_BL)
        for block in self.h:
            x_BLD = block(x_BLD, mask)
        states_BLD: Tensor = self.ln_f(x_BLD)
        return states_BLD


class BERTLayer(nn.Module):
    """Attention and MLP, a norm behind each sum (Devlin et al. 2019)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
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
        """One layer."""
        own, out = self.attention["self"], self.attention["output"]
        q, k, v = (own[name](x_BLD) for name in ("query", "key", "value"))  # type: ignore[index]
        x_BLD = out["LayerNorm"](x_BLD + out["dense"](attend(q, k, v, mask, self.heads)))  # type: ignore[index]
        wide = F.gelu(self.intermediate["dense"](x_BLD))
        states_BLD: Tensor = self.output["LayerNorm"](x_BLD + self.output["dense"](wide))
        return states_BLD


class BERT(TokenEncoder):
    """BERT's encoder: each token sees its whole document. Sizes default to BERT base's."""

    def __init__(self, view: ViewSpec, *, dim: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.dim = dim
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary_of(view), dim),
                "position_embeddings": nn.Embedding(view.size("L"), dim),
                "token_type_embeddings": nn.Embedding(2, dim),
                "LayerNorm": nn.LayerNorm(dim, eps=1e-12),
            }
        )
        layers = nn.ModuleList(BERTLayer(dim, heads) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """What the output layer is tied to."""
        found = self.embeddings["word_embeddings"]
        assert isinstance(found, nn.Embedding)
        return found

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the last layer, (B, L, D); all of segment type 0."""
        documents_BL, positions_BL = segments_2BL
        parts = self.embeddings
        x_BLD = parts["word_embeddings"](tokens_BL) + parts["position_embeddings"](positions_BL)
        x_BLD = parts["LayerNorm"](x_BLD + parts["token_type_embeddings"].weight[0])  # type: ignore[index]
        mask = allowed(documents_BL, causal=False)
        for layer in self.encoder["layer"].children():
            x_BLD = layer(x_BLD, mask)
        states_BLD: Tensor = x_BLD
        return states_BLD


def vocabulary_of(view: ViewSpec) -> int:
    """How many ids the tokens of a group have.

    Raises:
        ValueError: the group has no tokens.
    """
    if view.vocabulary is None or view.axes != "L":
        raise ValueError(
            f"views {view.group!r} are {view.shown} of axes {view.axes}, not rows of tokens; "
            "choose a backbone for them"
        )
    return view.vocabulary


TEXT_ENCODERS: Mapping[str, Callable[..., TokenEncoder]] = MappingProxyType(
    {"bert": BERT, "gpt": GPT}
)
