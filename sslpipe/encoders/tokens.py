"""What encoders of rows of tokens have in common: what is kept of one, and attention."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import ViewSpec
from .protocols import Encoder

AT_ONCE = 2**16  # tokens of one pass over documents that are read in pieces
PAD = 0  # the id of padding in every vocabulary of ours


class TokenEncoder(Encoder):
    """Rows of tokens become hidden states; pooled, features of a document."""

    word: nn.Embedding  # (vocabulary, D), which output layers are tied to
    length: int  # tokens of the rows that it is built for

    @abstractmethod
    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the hidden states after the last norm, (B, L, D).

        `segments_2BL` is what `Batch.segments` holds: the number of the document of each token, -1:
        padding, and its position in it; of rows of two texts also which of them it is in.
        """

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Average the hidden states of the tokens of documents (B, M), (B, D).

        What is longer than a row is read in pieces of a row, none of which sees another.
        """
        tokens_BM = images_BCHW
        if tokens_BM.shape[1] <= self.length:
            sums_BD = self._summed(tokens_BM)
        else:
            pieces_BPL = in_pieces(tokens_BM, self.length)
            documents_P, places_P = torch.nonzero((pieces_BPL != PAD).any(2), as_tuple=True)
            filled_PL = pieces_BPL[documents_P, places_P]
            parts = torch.split(filled_PL, max(1, AT_ONCE // self.length))
            sums_PD = torch.cat([self._summed(part_PL) for part_PL in parts])
            nothing_BD = sums_PD.new_zeros(len(tokens_BM), self.dim)
            sums_BD = nothing_BD.index_add(0, documents_P, sums_PD)
        return sums_BD / (tokens_BM != PAD).sum(1, keepdim=True).clamp_min(1)

    def _summed(self, tokens_PL: Tensor) -> Tensor:
        """Add the hidden states of each row as one document, (P, D)."""
        real_PL = tokens_PL != PAD
        places_PL = torch.arange(tokens_PL.shape[1], device=tokens_PL.device).expand_as(tokens_PL)
        segments_2PL = torch.stack([real_PL.long() - 1, places_PL])
        return (self.hidden(tokens_PL, segments_2PL) * real_PL[..., None]).sum(1)


def in_pieces(tokens_BM: Tensor, length: int) -> Tensor:
    """Cut documents into pieces of `length`, the last one padded, (B, P, L)."""
    padded = F.pad(tokens_BM, (0, -tokens_BM.shape[1] % length), value=PAD)
    return padded.view(len(tokens_BM), -1, length)


def allowed(documents_BL: Tensor, *, causal: bool) -> Tensor:
    """Which keys a query may see, (B, 1, L, L) bool: of its document; causal: none behind it."""
    same_BLL = documents_BL[:, :, None] == documents_BL[:, None, :]
    return (same_BLL.tril() if causal else same_BLL)[:, None]


def attend(
    q_BLD: Tensor,
    k_BLD: Tensor,
    v_BLD: Tensor,
    mask: Tensor | None,
    heads: int,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Dot-product attention in several heads, (B, L, D); scale None: 1 / root of a head's size.

    mask: bool, True = seen; or numbers that are added to the scores; None: all is seen.
    """
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q_BLD, k_BLD, v_BLD))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return found.transpose(1, 2).flatten(2)


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


def types_of(segments_2BL: Tensor) -> Tensor:
    """Which text of a row each token is in, (B, L): 0 or 1; 0 where rows are not of two texts."""
    return segments_2BL[2] if len(segments_2BL) > 2 else torch.zeros_like(segments_2BL[0])


def bert_embeddings(view: ViewSpec, width: int) -> nn.ModuleDict:
    """Make BERT's embeddings, of words, positions and the two texts of a row, and their norm."""
    return nn.ModuleDict(
        {
            "word_embeddings": nn.Embedding(vocabulary_of(view), width),
            "position_embeddings": nn.Embedding(view.size("L"), width),
            "token_type_embeddings": nn.Embedding(2, width),
            "LayerNorm": nn.LayerNorm(width, eps=1e-12),
        }
    )


def embedded_as_bert(parts: nn.ModuleDict, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
    """Add the three embeddings of each token, and normalise: (B, L, E)."""
    x_BLE = parts["word_embeddings"](tokens_BL) + parts["position_embeddings"](segments_2BL[1])
    x_BLE = x_BLE + parts["token_type_embeddings"](types_of(segments_2BL))
    normed: Tensor = parts["LayerNorm"](x_BLE)
    return normed


def start_bert(module: nn.Module) -> None:
    """Draw all weights as BERT does: normal numbers of .02, cut at two deviations; biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
