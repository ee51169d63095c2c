"""Weights of a ViT of images become those of one of clips.

The first convolution is repeated over the frames of a tubelet and divided by their number, so that
a still clip is embedded as its picture is (Carreira and Zisserman 2017, arXiv:1705.07750); learned
positions are repeated at all times. TimeSformer's attention in time starts as a copy of that in
space; its zero layers and its places in time stay as they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

PROJECTION, POSITIONS = "patch_embed.proj.weight", "pos_embed"
COPIED = {".temporal_attn.": ".attn.", ".temporal_norm1.": ".norm1."}
KEPT = ("time_embed", ".temporal_fc.weight", ".temporal_fc.bias")


def inflate(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Inflate weights of images, in place, where an encoder of clips wants them; say so if done.

    Positions stay: which grid they lie on is known to who asks.
    """
    made = dict.fromkeys((*inflated_projection(given, wanted), *temporal_branch(given, wanted)))
    return "; inflated from images" if made else ""


def inflated_projection(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Repeat the patch embedding over a tubelet's frames; the names that were made."""
    plane, volume = given.get(PROJECTION), wanted.get(PROJECTION)
    if plane is None or volume is None or (plane.ndim, volume.ndim) != (4, 5):
        return []
    frames = volume.shape[2]
    given[PROJECTION] = plane[:, :, None].repeat(1, 1, frames, 1, 1) / frames
    return [PROJECTION]


def temporal_branch(given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Copy attention in space to that in time, where there is none; the names that were made."""
    missing = [name for name in wanted if name not in given]
    for name in missing:
        for new, old in COPIED.items():
            source = name.replace(new, old)
            if new in name and source in given:
                given[name] = given[source].clone()
        if name.endswith(KEPT):
            given[name] = wanted[name]
    return [name for name in missing if name in given]


def over_time(positions_1TD: Tensor, prefix: int, model: nn.Module, times: int) -> Tensor:
    """Repeat positions of patches at all times behind those of `prefix` tokens: (1, T, D).

    Given are those of one image, T = prefix + patches; made are T = prefix + times * patches.
    Fixed ones of the model stay: they know time, and those of images do not.
    """
    own = model.get_parameter(POSITIONS)
    if not own.requires_grad:
        return own.detach()
    repeated = positions_1TD[:, prefix:].repeat(1, times, 1)
    return torch.cat([positions_1TD[:, :prefix], repeated], dim=1)
