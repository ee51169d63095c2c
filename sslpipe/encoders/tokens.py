"""What encoders of rows of tokens have in common: what is kept of one, and attention."""

from abc import abstractmethod

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
        padding, and its position in it; of rows of two texts also which of them it is in.
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


def start_bert(module: nn.Module) -> None:
    """Draw all weights as BERT does: normal numbers of .02, cut at two deviations; biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
