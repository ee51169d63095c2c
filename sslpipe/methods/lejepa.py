"""LeJEPA: all views near the mean of the global ones, and embeddings like an isotropic Gaussian.

Balestriero and LeCun 2025, "LeJEPA: provable and scalable self-supervised learning without the
heuristics", arXiv:2511.08544; rbalestr-lab/lejepa. M slices (random directions), T knots here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..process import group_ranks
from .method import Method, Output
from .parts.checks import check_axes, positive, shares
from .parts.collapse import embeddings_alike
from .parts.collectives import gather
from .parts.heads import at_least_fp32
from .parts.several_views import CropEmbedder


def epps_pulley(x_VBM: Tensor, *, knots: int = 17, limit: float = 3.0) -> Tensor:
    """Compute the statistic of Epps and Pulley 1983 for N(0, 1), over all ranks' samples: (V, M).

    Samples * integral of |phi_x(t) - phi(t)|^2 w(t) over [-limit, limit], phi = w = exp(-t^2 / 2),
    by the trapezoidal rule (section 4.2). The integrand is even: twice the integral from 0, as in
    the authors' code (univariate/epps_pulley.py); the paper's listing has [-5, 5].
    """
    t_T = torch.linspace(0.0, limit, knots, device=x_VBM.device, dtype=x_VBM.dtype)
    phi_T = torch.exp(-t_T.square() / 2)
    angles_VBMT = x_VBM[..., None] * t_T
    means_2VMT = torch.stack([angles_VBMT.cos().mean(1), angles_VBMT.sin().mean(1)])
    # with gradient: the statistic of the joined batch is no mean of the ranks' statistics
    cos_VMT, sin_VMT = gather(means_2VMT[None]).mean(0)
    error_VMT = (cos_VMT - phi_T).square() + sin_VMT.square()
    samples = x_VBM.shape[1] * group_ranks().size
    half_VM = torch.trapezoid(error_VMT * phi_T, t_T)
    statistic_VM: Tensor = 2 * samples * half_VM
    return statistic_VM


def random_slices(dim: int, slices: int, *, step: int) -> Tensor:
    """Draw directions (D, M) of unit length, float32, by the step, so that all ranks agree.

    Drawn on the CPU (2 ms for 512 x 1024), to be the same on every device.
    """
    directions_DM = torch.randn(dim, slices, generator=torch.Generator().manual_seed(step))
    return F.normalize(directions_DM, dim=0)


def sigreg(z_VBD: Tensor, slices_DM: Tensor, *, knots: int = 17, limit: float = 3.0) -> Tensor:
    """Sketched isotropic Gaussian regularisation (section 4) is the mean over views and slices."""
    check_axes("sigreg", z_VBD=z_VBD, slices_DM=slices_DM)
    with torch.autocast(z_VBD.device.type, enabled=False):
        x_VBM = at_least_fp32(z_VBD) @ slices_DM.to(torch.promote_types(z_VBD.dtype, torch.float32))
        return epps_pulley(x_VBM, knots=knots, limit=limit).mean()


def prediction_loss(z_VBD: Tensor, global_views: int) -> Tensor:
    """Squared distance of all views to the mean of the first `global_views` (section 5.1).

    Mean over views, samples and dimensions. No stop-gradient anywhere.
    """
    check_axes("prediction_loss", z_VBD=z_VBD)
    z_VBD = at_least_fp32(z_VBD)
    return (z_VBD - z_VBD[:global_views].mean(0)).square().mean()


class LeJEPA(Method):
    """Needs 2 'global' views; 'local' ones are optional."""

    collapse_signs = (embeddings_alike,)
    # the encoder that is trained is kept; there is no teacher
    encoders = (("student", "embedder.encoder"),)

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        weight: float = 0.05,
        projector: tuple[int, ...] = (2048, 2048, 128),
        slices: int = 1024,
        knots: int = 17,
        limit: float = 3.0,
    ) -> None:
        super().__init__()
        positive(projector=projector, slices=slices, limit=limit)
        shares(weight=weight)
        if knots < 2:
            raise ValueError(f"knots = {knots}; an integral takes 2 or more")
        self.weight = weight  # lambda
        self.slices = slices
        self.knots = knots
        self.limit = limit
        self.embedder = CropEmbedder("lejepa", encoder, spec, projector=projector)
        self.global_views = spec.views["global"].count

    def forward(self, batch: Batch) -> Output:
        """Add both terms: (1 - lambda) prediction + lambda SIGReg."""
        z_VBD = self.embedder(batch.views)
        slices_DM = random_slices(z_VBD.shape[-1], self.slices, step=batch.step)
        slices_DM = slices_DM.to(z_VBD.device, non_blocking=True)
        gauss = sigreg(z_VBD, slices_DM, knots=self.knots, limit=self.limit)
        prediction = prediction_loss(z_VBD, self.global_views)
        loss = (1 - self.weight) * prediction + self.weight * gauss
        # per channel, 1 is a Gaussian's; 0 a collapse
        std = z_VBD.detach().float().std(1).mean()
        terms = {"prediction": prediction.detach(), "sigreg": gauss.detach()}
        return Output(loss, terms | {"embedding_std": std})
