"""SigLIP: is this caption that image's? A yes or no for every pair of the global batch.

Zhai et al. 2023, "Sigmoid loss for language image pre-training", arXiv:2303.15343;
google-research/big_vision, trainers/proj/image_text/siglip.py.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Output
from .parts.checks import check_axes
from .parts.collectives import gather, own_places
from .parts.two_towers import TwoTowers, on_sphere, pairs_monitors, summed


def siglip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    chunk: int | None = None,
) -> Tensor:
    """Algorithm 1: the sum over pairs of -log sigmoid(z (scale cosine + bias)), by the images.

    z is 1 of a pair that belongs together, else -1. It is divided by B and not by its square.
    Captions come from all ranks, with gradient: they are few bytes beside the logits, of which
    `chunk` rows are held at once, where the paper passes the captions on in a ring. The mean over
    ranks, which DDP takes, is the loss of the joined batch, and so are the gradients.
    """
    check_axes("siglip_loss", image_BD=image_BD, text_BD=text_BD)
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD = on_sphere(image_BD, text_BD)
        all_XD = gather(text_BD)

        def part(rows_BD: Tensor, own_B: Tensor) -> Tensor:
            logits_BX = scale * rows_BD @ all_XD.T + bias
            # -log sigmoid(l) = softplus(-l) = softplus(l) - l
            return F.softplus(logits_BX).sum() - logits_BX.gather(1, own_B[:, None]).sum()

        return summed(part, image_BD, own_places(image_BD), chunk) / len(image_BD)


class SigLIP(TwoTowers):
    """Needs 1 'global' view and a group of captions.

    dim: of the common space. text: dim, depth and heads of the text tower, whose tokens see their
    whole caption. scale, bias: at the start; both are learned. The paper's bias of -10 is for
    batches of some 20,000 pairs: ln(1 / (pairs - 1)) says as often yes as there are pairs. chunk:
    rows of logits that are held at once; None: all.
    """

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        dim: int = 768,
        text: dict[str, Any] = {},  # noqa: B006 - never changed
        scale: float = 10.0,
        bias: float = -10.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            "siglip", encoder, spec, dim=dim, text=text, causal=False, scale=scale, chunk=chunk
        )
        self.bias = nn.Parameter(torch.tensor(bias))
        # of the best answer that knows how rare pairs are, and nothing else
        count = spec.global_size
        self.chance_loss = math.log(count) + (count - 1) * math.log1p(1 / max(count - 1, 1))

    def forward(self, batch: Batch) -> Output:
        """Ask of each image and each caption whether they belong together."""
        image_BD, text_BD = self.embedded(batch)
        loss = siglip_loss(
            image_BD, text_BD, scale=self.log_scale.exp(), bias=self.bias, chunk=self.chunk
        )
        return Output(loss, pairs_monitors(image_BD, text_BD, self.log_scale))

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Spare the bias of the logits, too, beside what the towers spare."""
        yield from super().undecayed_parameters()
        yield self.bias
