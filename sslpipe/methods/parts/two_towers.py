"""What CLIP and SigLIP share: an encoder of images and one of captions, into one space.

Letters: B pairs of this rank, X of all ranks, D the common space, S patches that are seen.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...batch import Batch, BatchSpec, ViewSpec
from ...encoders.libraries import undecayed_by_name
from ...encoders.monitors import embedding_std
from ...encoders.patches import visible_first
from ...encoders.protocols import PatchEncoder
from ...encoders.sizes import check_most
from ...encoders.text_tower import TextTower
from ...recipe.names import Entry, bind, call
from ..method import Method, Numbers, Sign
from .checks import positive
from .collapse import LEAST_EMBEDDING_STD, embeddings_alike, spread_sign
from .heads import at_least_fp32, feature_dim
from .patches import hidden_patches, patch_mask
from .tokens import one_group_of

HIDDEN = "random"  # the mask of FLIP


def captions_alike(row: Numbers, largest: Numbers) -> Sign | None:
    """Judge the spread of the captions' embeddings; 0: they are one point."""
    what = "the embeddings of the captions"
    return spread_sign("caption_std", what, row, largest, least=LEAST_EMBEDDING_STD)


class TwoTowers(Method):
    """Needs 1 'global' view and a group of captions; a mask called 'random' makes FLIP of it.

    Li et al. 2023, arXiv:2212.00794: the patches that the mask hides are not encoded, and the class
    token stands for the image, so the backbone must pool it (`pool: token`, the default).
    """

    encoder: nn.Module
    encoders = (("image", "encoder"), ("text", "text"))
    collapse_signs = (embeddings_alike, captions_alike)
    collapse_causes = (
        "captions that say nothing of their pictures, a scale that starts too high, a learning "
        "rate that is too high or a warm-up that is too short, batches that are too small"
    )

    def __init__(
        self,
        method: str,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        dim: int,
        text: dict[str, Any],
        causal: bool,
        scale: float,
        chunk: int | None,
    ) -> None:
        super().__init__()
        spec.require(method, views={"global": 1})
        positive(dim=dim, scale=scale, chunk=1 if chunk is None else chunk)
        self.group, self.chunk, self.visible = caption_group(method, spec), chunk, 0
        if HIDDEN in spec.masks:
            mask = patch_mask(method, encoder, spec, HIDDEN)
            self.visible = mask.patches - hidden_patches(method, mask, HIDDEN)
        self.encoder = encoder
        where = f"method.{method}.text"
        self.text = text_tower(Entry("text", text, where), spec.views[self.group], causal)
        self.project_image = projection(feature_dim(encoder, method), dim)
        self.project_text = projection(self.text.dim, dim)
        # a logarithm, so that a step changes it by a share
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def embedded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode images, of FLIP their visible patches, and captions: two (B, D)."""
        images_BCHW, tokens_BL = batch.views["global"][0], batch.views[self.group][0]
        texts_BD = self.embedded_texts(tokens_BL, batch.segments[self.group])
        if not self.visible:
            return self.embedded_images(images_BCHW), texts_BD
        seen_BS = visible_first(batch.masks[HIDDEN][0])[:, : self.visible]
        tokens_BSD = cast(PatchEncoder, self.encoder).tokens(images_BCHW, seen_BS)
        return self.project_image(tokens_BSD[:, 0]), texts_BD

    def embedded_images(self, images_BCHW: Tensor) -> Tensor:
        """Encode whole images, (B, D), not normalised."""
        z_BD: Tensor = self.project_image(self.encoder(images_BCHW))
        return z_BD

    def embedded_texts(self, tokens_BL: Tensor, segments_2BL: Tensor) -> Tensor:
        """Encode captions, (B, D), not normalised."""
        z_BD: Tensor = self.project_text(self.text.at_end(tokens_BL, segments_2BL))
        return z_BD

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Spare what is 1-D (of whatever optimizer), class token and positions, as open_clip."""
        yield self.log_scale
        yield from undecayed_by_name(self.encoder)
        yield from self.text.wpe.parameters()


def caption_group(method: str, spec: BatchSpec) -> str:
    """The group of captions of a batch.

    Raises:
        ContractError: there is none, or several.
    """
    remedy = "Add views.text: {modality: text, ops: [Captions: {length: 32}]}"
    return one_group_of(method, spec, "captions beside the pictures", remedy)


def text_tower(entry: Entry, view: ViewSpec, causal: bool) -> TextTower:
    """Make the tower of a method's setting `text`.

    Raises:
        RecipeError: an unknown setting, or sizes that do not fit or are beyond use.
    """
    check_most(entry, bind(TextTower, entry))
    made: TextTower = call(TextTower, entry, view, causal)
    return made


def projection(inputs: int, dim: int) -> nn.Linear:
    """A linear layer without bias, weights normal of 1 / sqrt(inputs), as open_clip's."""
    layer = nn.Linear(inputs, dim, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def on_sphere(*embeddings: Tensor) -> list[Tensor]:
    """L2-normalise each (B, D), in at least fp32: else lengths, and no cosines, decide."""
    return [F.normalize(at_least_fp32(z_BD), dim=1) for z_BD in embeddings]


def summed(
    part: Callable[[Tensor, Tensor], Tensor], rows_BD: Tensor, own_B: Tensor, chunk: int | None
) -> Tensor:
    """Sum `part(rows, own)` over chunks of rows; None: all of them at once.

    The logits of a chunk are made again in the backward pass, so memory holds (chunk, X) of them
    and not (B, X): 32,768 pairs of one GPU are 4 GB in fp32, and their gradient as much.
    """
    if chunk is None or chunk >= len(rows_BD):
        return part(rows_BD, own_B)
    total = rows_BD.new_zeros(())
    for start in range(0, len(rows_BD), chunk):
        rows, own = rows_BD[start : start + chunk], own_B[start : start + chunk]
        total = total + checkpoint(part, rows, own, use_reentrant=False, preserve_rng_state=False)
    return total


@torch.no_grad()
def pairs_monitors(image_BD: Tensor, text_BD: Tensor, log_scale: Tensor) -> dict[str, Tensor]:
    """Tell how often an image's caption is the nearest of this rank's, spreads, and the scale.

    All are scalars; the spreads are mean standard deviations of normalised embeddings.
    """
    image_BD, text_BD = on_sphere(image_BD, text_BD)
    nearest_B = (image_BD @ text_BD.T).argmax(1)
    own_B = torch.arange(len(nearest_B), device=nearest_B.device)
    return {
        "top1": (nearest_B == own_B).float().mean(),
        "embedding_std": embedding_std(image_BD),
        "caption_std": embedding_std(text_BD),
        "scale": log_scale.exp(),
    }
