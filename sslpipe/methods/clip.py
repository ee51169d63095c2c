"""CLIP: an image and its caption agree, against the captions and images of the global batch.

Radford et al. 2021, "Learning transferable visual models from natural language supervision",
arXiv:2103.00020, figure 3; mlfoundations/open_clip, loss.py: ClipLoss with local_loss and
gather_with_grad, whose gradient is that of one process on the joined batch.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Output
from .parts.checks import check_axes
from .parts.collectives import gather, own_places
from .parts.two_towers import TwoTowers, on_sphere, pairs_monitors, summed

LARGEST_SCALE = 100.0


def clip_loss(
    image_BD: Tensor, text_BD: Tensor, *, scale: Tensor | float, chunk: int | None = None
) -> Tensor:
    """Mean of two cross entropies: of each image to its caption, and of each caption to its image.

    Candidates come from all ranks, with gradient. Embeddings are L2-normalised inside; cosines are
    multiplied by `scale`. chunk: rows of logits that are held at once. The mean over ranks, which
    DDP takes, is the loss of the joined batch, and so are the gradients.
    """
    check_axes("clip_loss", image_BD=image_BD, text_BD=text_BD)
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD = on_sphere(image_BD, text_BD)
        own_B, total = own_places(image_BD), image_BD.new_zeros(())
        for rows_BD, others_BD in ((image_BD, text_BD), (text_BD, image_BD)):
            all_XD = gather(others_BD)

            def part(rows: Tensor, own: Tensor, all_XD: Tensor = all_XD) -> Tensor:
                return F.cross_entropy(scale * rows @ all_XD.T, own, reduction="sum")

            total = total + summed(part, rows_BD, own_B, chunk)
        return total / (2 * len(image_BD))


class CLIP(TwoTowers):
    """Needs 1 'global' view and a group of captions.

    dim: of the common space. text: dim, depth and heads of the text tower, whose tokens see those
    before them. temperature: at the start; the scale, its inverse, is learned. chunk: rows of
    logits that are held at once; None: all.
    """

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        dim: int = 512,
        text: dict[str, Any] = {},  # noqa: B006 - never changed
        temperature: float = 0.07,
        chunk: int | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}; set what is above 0")
        super().__init__(
            "clip", encoder, spec, dim=dim, text=text, causal=True, scale=1 / temperature,
            chunk=chunk,
        )  # fmt: skip
        self.chance_loss = math.log(spec.global_size)

    def forward(self, batch: Batch) -> Output:
        """Compare each image with all captions, and each caption with all images."""
        image_BD, text_BD = self.embedded(batch)
        loss = clip_loss(image_BD, text_BD, scale=self.log_scale.exp(), chunk=self.chunk)
        return Output(loss, pairs_monitors(image_BD, text_BD, self.log_scale))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Keep the scale in [1, 100]. Clamped before a step, it could leave it by that step."""
        self.log_scale.clamp_(0.0, math.log(LARGEST_SCALE))
