"""I-JEPA: from a context block, guess a teacher's tokens of target blocks of the same image.

Assran et al. 2023, "Self-supervised learning from images with a joint-embedding predictive
architecture", arXiv:2301.08243; facebookresearch/ijepa, src/train.py. M target blocks per image,
R = M * B blocks, block by block, S tokens of a context, T of a target here.
The official encoder has no class token: ours keeps timm's, which the context encoder may use as a
scratch pad, the predictor never sees, and `pool: mean` on the backbone leaves out of the features.
Masks of mode `per_sample` have contexts and targets of different lengths: they are padded, and
nothing attends to the padding.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.libraries import library
from ..encoders.monitors import spread_over_images
from ..encoders.patches import sincos, take
from ..encoders.protocols import PatchEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, not_negative, shares
from .parts.collapse import MASKED_CAUSES
from .parts.heads import at_least_fp32, feature_dim, trunc_normal
from .parts.patches import Padded, check_blocks, mean_of_real, padded, patch_mask, real_keys
from .parts.teachers import ema_update, frozen_copy, linear_between


def ijepa_targets(tokens_BND: Tensor, index_RT: Tensor) -> Tensor:
    """Take the teacher's tokens, layer-normed without weights, at the target places: (R, T, D)."""
    with torch.autocast(tokens_BND.device.type, enabled=False):
        tokens_BND = F.layer_norm(at_least_fp32(tokens_BND), tokens_BND.shape[-1:])
        return take(tokens_BND.repeat(len(index_RT) // len(tokens_BND), 1, 1), index_RT)


def ijepa_loss(
    pred_RTD: Tensor, target_RTD: Tensor, real_RT: Tensor, *, beta: float = 1.0
) -> Tensor:
    """Average the smooth L1 error over all target tokens; a scalar. `real_RT` False: padding.

    The paper's section 3 writes an L2 distance; smooth L1 is that of the official code. `beta`:
    where it turns from squares to absolute values; 0: the absolute error, V-JEPA's.
    """
    check_axes("ijepa_loss", pred_RTD=pred_RTD, target_RTD=target_RTD, real_RT=real_RT)
    with torch.autocast(pred_RTD.device.type, enabled=False):
        pred_RTD, target_RTD = at_least_fp32(pred_RTD), target_RTD.detach()
        error_RT = F.smooth_l1_loss(pred_RTD, target_RTD, beta=beta, reduction="none").mean(-1)
        return mean_of_real(error_RT, real_RT)


class IJEPA(Method):
    """Needs 1 'global' view and masks 'context' and 'targets'.

    One context is for all targets; or there are as many, and target m is guessed from context m. So
    it is V-JEPA on clips (Bardes et al. 2024, arXiv:2404.08471; V-JEPA 2, arXiv:2506.09985), with
    `tube_blocks` for both masks and beta 0. Differs: all target tokens weigh alike, where theirs
    averages each mask for itself first; positions are fixed ones of a patch's number, not rotary.

    Raises:
        ContractError: there are several contexts, but not as many as targets.
    """

    collapse_causes = MASKED_CAUSES
    # the TEACHER is kept, the target encoder that the paper evaluates
    encoders = (("teacher", "teacher"), ("student", "student"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        predictor_dim: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        momentum: tuple[float, float] = (0.996, 1.0),
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        mask = patch_mask("ijepa", encoder, spec, "context", axes=(2, 3))
        targets = patch_mask("ijepa", encoder, spec, "targets", axes=(2, 3))
        if mask.count not in (1, targets.count):
            raise ContractError(
                f"ijepa needs one context, or one for each of the {targets.count} targets; this "
                f"recipe makes {mask.count}. Set masks.context.count"
            )
        shares(momentum=momentum)
        not_negative(beta=beta)
        self.momentum, self.beta = momentum, beta
        self.student = encoder
        self.teacher = frozen_copy(encoder)
        self.predictor = JEPAPredictor(
            feature_dim(encoder, "ijepa"), mask.grid, dim=predictor_dim, heads=predictor_heads,
            depth=predictor_depth,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """The student sees the context alone, the teacher the whole image."""
        images_BCHW = batch.views["global"][0]
        context, targets = self.chosen(batch)
        with torch.no_grad():
            whole_BND = cast(PatchEncoder, self.teacher).tokens(images_BCHW)[:, 1:]
            target_RTD = ijepa_targets(whole_BND, targets.index_BS)
        student = cast(PatchEncoder, self.student)
        keys = None if context.even else context.real_BS
        tokens_BSD = student.tokens(images_BCHW, context.index_BS, real_BS=keys)[:, 1:]
        pred_RTD = self.predictor(tokens_BSD, context, targets)
        loss = ijepa_loss(pred_RTD, target_RTD, targets.real_BS, beta=self.beta)
        # over images, at the same place: 0 = the teacher says the same of every image
        spread = spread_over_images(F.layer_norm(whole_BND.float(), whole_BND.shape[-1:]))
        return Output(loss, {"target_std": spread})

    @staticmethod
    def chosen(batch: Batch) -> tuple[Padded, Padded]:
        """Read which patches are context, B or M * B rows, and which are targets, M * B rows."""
        hidden_CBN, targets_MBN = batch.masks["context"], batch.masks["targets"]
        visible = hidden_CBN.shape[-1] - batch.hidden["context"]
        return (
            padded(~hidden_CBN.flatten(0, 1), visible),
            padded(targets_MBN.flatten(0, 1), batch.hidden["targets"]),
        )

    def after_step(self, progress: float) -> None:
        """Move the teacher by its EMA, whose momentum rises linearly."""
        ema_update(self.teacher, self.student, linear_between(*self.momentum, progress))


class JEPAPredictor(nn.Module):
    """A narrow ViT that reads the context and writes at the target places.

    Mask tokens with the fixed positions of a target block stand beside the context.
    facebookresearch/ijepa, src/models/vision_transformer.py (VisionTransformerPredictor).
    """

    positions_ND: Tensor

    def __init__(
        self, encoder_dim: int, grid: tuple[int, ...], *, dim: int, heads: int, depth: int
    ) -> None:
        super().__init__()
        check_blocks("predictor", dim=dim, heads=heads, depth=depth)
        block = library("timm.models.vision_transformer").Block
        self.embed = nn.Linear(encoder_dim, dim)
        # 3-D, as officially, where it is therefore decayed
        self.mask_token_11D = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions_ND", sincos(dim, grid)[0, 1:], persistent=False)
        self.blocks = nn.ModuleList(block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, encoder_dim)
        self.initialise()

    def initialise(self) -> None:
        """Draw the official weights, trunc_normal(.02).

        The official constructor also scales residual branches by their depth, but init_model of
        helper.py then draws every linear layer anew.
        """
        nn.init.trunc_normal_(self.mask_token_11D, std=0.02)
        self.apply(trunc_normal)

    def forward(self, tokens_BSD: Tensor, context: Padded, targets: Padded) -> Tensor:
        """Turn context tokens into (R, T, D); the blocks of an image do not see each other."""
        masks = len(targets.index_BS) // len(tokens_BSD)
        x_BSD = self.embed(tokens_BSD) + self.positions_ND[context.index_BS]
        queries_RTD = self.mask_token_11D + self.positions_ND[targets.index_BS]
        x = torch.cat([x_BSD.repeat(masks, 1, 1), queries_RTD], dim=1)
        repeated = context._replace(real_BS=context.real_BS.repeat(masks, 1))
        keys = real_keys(repeated, targets)
        attended = None if keys is None else keys[:, None, None]
        for block in self.blocks:
            x = block(x, attn_mask=attended)
        return cast(Tensor, self.predict(self.norm(x[:, tokens_BSD.shape[1] :])))
