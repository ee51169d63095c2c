"""MoCo v3: each view's query finds the key of the other view among those of the global batch.

Chen et al. 2021, "An empirical study of training self-supervised vision transformers",
arXiv:2104.02057; facebookresearch/moco-v3, moco/builder.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, positive, shares
from .parts.collapse import CONTRASTIVE_CAUSES, embeddings_alike
from .parts.collectives import gather, own_places
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .parts.teachers import cosine_between, ema_update, frozen_copy
from .simclr import pair_monitors


def moco_v3_loss(q_BD: Tensor, k_BD: Tensor, *, temperature: float) -> Tensor:
    """Algorithm 1, `ctr`: cross entropy of queries to keys of all ranks, times 2 tau.

    Embeddings are L2-normalised inside. No gradient reaches the keys.
    """
    check_axes("moco_v3_loss", q_BD=q_BD, k_BD=k_BD)
    with torch.autocast(q_BD.device.type, enabled=False):
        q_BD = F.normalize(at_least_fp32(q_BD), dim=1)
        k_XD = gather(F.normalize(at_least_fp32(k_BD.detach()), dim=1))
        own_B = own_places(q_BD)
        return 2 * temperature * F.cross_entropy(q_BD @ k_XD.T / temperature, own_B)


class MoCoV3(Method):
    """Needs 2 'global' views. `predictor_norm` and `freeze_patches` are for ViTs (section 4)."""

    collapse_signs = (embeddings_alike,)
    collapse_causes = CONTRASTIVE_CAUSES
    # the online encoder is kept, as officially
    encoders = (("student", "online.0"), ("teacher", "target.0"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (4096, 4096, 256),
        predictor_hidden: int = 4096,
        predictor_norm: bool = True,
        freeze_patches: bool = True,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        spec.require("moco_v3", views={"global": 2})
        positive(temperature=temperature, projector=projector, predictor_hidden=predictor_hidden)
        shares(momentum=momentum)
        if freeze_patches:
            freeze_patch_projection(encoder)
        self.temperature = temperature
        self.momentum = momentum
        sizes = (feature_dim(encoder, "moco_v3"), *projector)
        self.online = nn.Sequential(encoder, hidden_norm_mlp(sizes, last_norm=True))
        self.predictor = hidden_norm_mlp(
            (projector[-1], predictor_hidden, projector[-1]), last_norm=predictor_norm
        )
        self.target = frozen_copy(self.online)
        # both directions of 2 tau ln(N)
        self.chance_loss = 4 * temperature * math.log(spec.global_size)

    def forward(self, batch: Batch) -> Output:
        """Encode view by view, as officially, so that batch norm never mixes kinds of views."""
        views = batch.views["global"][:2]
        q1_BD, q2_BD = (self.predictor(self.online(view_BCHW)) for view_BCHW in views)
        with torch.no_grad():
            k1_BD, k2_BD = (self.target(view_BCHW) for view_BCHW in views)
        loss = moco_v3_loss(q1_BD, k2_BD, temperature=self.temperature)
        loss = loss + moco_v3_loss(q2_BD, k1_BD, temperature=self.temperature)
        return Output(loss, pair_monitors(q1_BD, q2_BD))

    def after_step(self, progress: float) -> None:
        """Move the target by its EMA, whose momentum rises to 1 (--moco-m-cos).

        Officially between the query and the key passes of the next step, with its progress: the
        same weights, but once per step also when gradients are accumulated.
        """
        ema_update(self.target, self.online, cosine_between(self.momentum, 1.0, progress))


def freeze_patch_projection(encoder: nn.Module) -> None:
    """Keep the patch projection random: never trained, it makes ViTs stable (section 4).

    Its initialisation is the official one (vits.py), which nothing will ever repair.

    Raises:
        ContractError: the encoder has no patch projection.
    """
    parts = dict(encoder.named_modules())
    projection = parts.get("model.patch_embed.proj")  # of every ViT of timm
    if not isinstance(projection, nn.Conv2d) or projection.bias is None:
        raise ContractError(
            f"moco_v3 freezes the patch projection, and {type(encoder).__name__} has none. Set "
            "method.moco_v3.freeze_patches to false, or train.backbone to a ViT"
        )
    weight = projection.weight
    bound = math.sqrt(6 / (weight[0].numel() + len(weight)))
    nn.init.uniform_(weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    parts["model.patch_embed"].requires_grad_(False)
