"""Retrieval across towers: the caption of an image, and the image of a caption, among all.

Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1. An image with several captions is found if
any of them is among the first k; to ask for one alone costs about 20 points of recall on COCO.
Letters: N images, M captions, D features, K the ranks k.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SslpipeError
from .rankings import chance_of_hit
from .results import Measure
from .zero_shot import ROUNDING

RANKS = (1, 5, 10)
ROWS = 1024  # whose cosines are held at once: of 100,000 captions 0.8 GB


def images_before(images_ND: Tensor, captions_MD: Tensor, owners_M: Tensor) -> Tensor:
    """Of each caption, (M,): how many images are as near to it as its own, or nearer."""
    images_ND = F.normalize(images_ND.double(), dim=1)
    found = []
    for rows in chunks(len(captions_MD)):
        cosines_RN = F.normalize(captions_MD[rows].double(), dim=1) @ images_ND.T
        own_R1 = cosines_RN.gather(1, owners_M[rows, None])
        found.append((cosines_RN >= own_R1 - ROUNDING).sum(1) - 1)
    return torch.cat(found)


def captions_before(images_ND: Tensor, captions_MD: Tensor, owners_M: Tensor) -> Tensor:
    """Of each image, (N,): how many captions of others are as near as its nearest, or nearer.

    Of an image without captions all are.
    """
    captions_MD = F.normalize(captions_MD.double(), dim=1)
    found = []
    for rows in chunks(len(images_ND)):
        cosines_RM = F.normalize(images_ND[rows].double(), dim=1) @ captions_MD.T
        numbers_R = torch.arange(len(images_ND))[rows]
        own_RM = owners_M == numbers_R[:, None]
        best_R1 = cosines_RM.masked_fill(~own_RM, -2.0).amax(1, keepdim=True)
        found.append(((cosines_RM >= best_R1 - ROUNDING) & ~own_RM).sum(1))
    return torch.cat(found)


def chunks(count: int) -> Iterator[slice]:
    """Cut `count` rows into slices of ROWS; the last one may reach beyond the end."""
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))


def cross_retrieval(
    images_ND: Tensor,
    captions_MD: Tensor,
    owners_M: Tensor,
    ranks: tuple[int, ...] = RANKS,
) -> dict[str, list[float]]:
    """recall@k of both directions, over all images and captions: "image to text", "text to image".

    owners: (M,) int64, the image of each caption. What is as near as the right answer counts as
    nearer; so an equal caption of another image is in the way. Images without captions are not
    asked for.

    Raises:
        SslpipeError: there is no caption.
    """
    if not len(captions_MD):
        raise SslpipeError("cross_retrieval: there is no caption; evaluate on captioned shards")
    asked = torch.bincount(owners_M, minlength=len(images_ND)) > 0
    to_text = captions_before(images_ND, captions_MD, owners_M)[asked]
    to_image = images_before(images_ND, captions_MD, owners_M)
    return {
        name: [(before < k).double().mean().item() for k in ranks]
        for name, before in (("image to text", to_text), ("text to image", to_image))
    }


def cross_retrieval_measures(
    images_ND: Tensor, captions_MD: Tensor, owners_M: Tensor, ranks: tuple[int, ...] = RANKS
) -> tuple[Measure, ...]:
    """What `sslpipe eval` shows: recall@k both ways, beside that of random rankings."""
    found = cross_retrieval(images_ND, captions_MD, owners_M, ranks)
    images, captions = len(images_ND), len(captions_MD)
    counts = torch.bincount(owners_M, minlength=images).numpy()
    counts = counts[counts > 0]
    how = f"retrieval across towers: {images:,} images, {captions:,} captions; ties count against"
    measures = []
    for name, recalls in found.items():
        right, places = (counts, captions) if name == "image to text" else (np.ones(1), images)
        for k, recall in zip(ranks, recalls, strict=True):
            chance = chance_of_hit(right.astype(np.int64), np.full(len(right), places), k).mean()
            measures.append(Measure(f"{name} R@{k}", recall, how, chance=float(chance)))
    return tuple(measures)
