"""The encoder of captions that CLIP and SigLIP train beside one of images."""

import torch
from torch import Tensor, nn

from ..batch import ViewSpec
from .text import GPTBlock
from .tokens import TokenEncoder, allowed, vocabulary_of


class TextTower(TokenEncoder):
    """A transformer; the state of the last token, `end`, stands for the caption.

    Radford et al. 2021, arXiv:2103.00020, section 2.4, and open_clip's transformer.py:
    TextTransformer, whose initial weights it has. causal: each token sees those before it (CLIP);
    else all of its caption (SigLIP). Padding is seen by no token, where open_clip's SigLIP sees it.
    A deviation: GELU by its tanh form, as in SigLIP's code, and biases start at 0.
    """

    def __init__(
        self, view: ViewSpec, causal: bool, *, dim: int = 512, depth: int = 12, heads: int = 8
    ) -> None:
        super().__init__()
        if min(dim, depth, heads) < 1 or dim % heads:
            raise ValueError(f"dim = {dim} is no multiple of heads = {heads}, or depth below 1")
        self.dim, self.causal = dim, causal
        self.wte = nn.Embedding(vocabulary_of(view), dim)
        self.wpe = nn.Embedding(view.size("L"), dim)
        self.h = nn.ModuleList(GPTBlock(dim, heads, depth) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim)
        self._start(depth)

    def _start(self, depth: int) -> None:
        """Draw the weights as TextTransformer.init_parameters does."""
        width = self.dim**-0.5
        stds = {
            "attn.c_attn": width, "attn.c_proj": width * (2 * depth) ** -0.5,
            "mlp.c_fc": (2 * self.dim) ** -0.5, "mlp.c_proj": width * (2 * depth) ** -0.5,
        }  # fmt: skip
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.01)
        for block in self.h:
            for name, std in stds.items():
                nn.init.normal_(block.get_parameter(f"{name}.weight"), std=std)

    @property
    def word(self) -> nn.Embedding:  # type: ignore[override]
        """The embedding of tokens."""
        return self.wte

    def hidden(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the states after the final norm, (B, L, D)."""
        documents_BL, positions_BL = segments_2BL
        mask = allowed(documents_BL, causal=self.causal)
        x_BLD = self.wte(tokens_BL) + self.wpe(positions_BL)
        for block in self.h:
            x_BLD = block(x_BLD, mask)
        states_BLD: Tensor = self.ln_f(x_BLD)
        return states_BLD

    def at_end(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Give the state of the last token of each caption, (B, D).

        By its place: officially by the largest id, which holds only while `end` has it.
        """
        states_BLD = self.hidden(tokens_BL, segments_2BL)
        last_B = ((segments_2BL[0] >= 0).sum(1) - 1).clamp_min(0)
        return states_BLD[torch.arange(len(last_B), device=last_B.device), last_B]
