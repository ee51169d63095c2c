"""Label-free signs of health of an encoder, cheap enough to log while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set eval mode and no gradients; afterwards every submodule is back in the mode it had.

    `module.train()` would not do: it also wakes the parts that were frozen on purpose.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def embedding_std(z_ND: Tensor) -> Tensor:
    """Average the std of each channel of the l2-normalised embeddings; a scalar.

    About 1/sqrt(D) is healthy, 0 is collapse. Chen and He 2021 (SimSiam), figure 2.
    """
    return spread_over_images(normalize(z_ND.float(), dim=1))


def spread_over_images(values: Tensor) -> Tensor:
    """Average the std over images, axis 0, of every value that an image has; a scalar, float32.

    The variance is divided by N - 1, in all monitors; one image has a std of 0.
    """
    return values.float().std(dim=0, correction=min(1, len(values) - 1)).mean()


def rankme(z_ND: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Compute the effective rank of uncentred embeddings: a scalar in [1, min(N, D)].

    Garrido et al. 2023, eq. 1.

    Comparable only between equal N and D; the paper takes N = 25600.
    """
    # float64: singular values far below the first one decide the entropy
    return effective_rank(torch.linalg.svdvals(z_ND.double()), eps=eps)


def effective_rank(values: Tensor, *, eps: float) -> Tensor:
    """Compute exp(entropy) of non-negative float64 `values` as shares of their sum; a scalar.

    `eps` is added to each share, after the division. The number of values, if they are alike.
    """
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum())


def monitor(encoder: nn.Module, images_BCHW: Tensor, *, limit: int = 256) -> dict[str, Tensor]:
    """Compute `feature_std` and `feature_rankme` of the encoder on at most `limit` images.

    Eval mode, so no BatchNorm statistic moves. Cost: one forward of `limit` images and an SVD of
    (limit, D): less than one training step of that many images.
    """
    with evaluating(encoder):
        z_ND = encoder(images_BCHW[:limit])
    return {"feature_std": embedding_std(z_ND), "feature_rankme": rankme(z_ND)}
