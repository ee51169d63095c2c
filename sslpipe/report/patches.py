"""What an encoder makes of the places of a picture: patches as colours, and attention.

Patches as colours are as in DINOv2's figure 1, without its threshold for the foreground: the first
three principal components of all patches of all pictures. Attention is as in DINO's
visualize_attention.py: the last block, the row of the class token, one map per head.
Letters: B pictures, D features, E heads, h x w places, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..batch import Batch
from ..encoders.library_encoders import ResNet, ViT
from ..encoders.monitors import evaluating
from ..encoders.patches import along_axes
from ..encoders.protocols import MapEncoder
from ..evaluate.features import central
from ..modalities.image.decider import ImageDecider
from ..modalities.image.decode import Pixels
from ..modalities.image.sheet import picture
from ..pipeline import load
from ..recipe import Entry, Recipe
from ..stream.reader import Sample
from .maps import basis

F64 = npt.NDArray[np.float64]
FEWEST = 16  # places of a map that is worth a look
TAILS = (1.0, 99.0)  # percentiles of a component that become 0 and 255: single patches stick out
# of a ramp from dark to light whose lightness rises evenly, as matplotlib's inferno does
RAMP = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]
)


@dataclass(frozen=True, slots=True)
class SeenViews:
    """Pictures as an encoder sees them, (B, C, H, W) normalised, and as people do, (B, H, W, 3)."""

    views_BCHW: Tensor
    pictures_BHWC: Pixels


@dataclass(frozen=True, slots=True)
class Attention:
    """Maps (B, E, h, w) of a ViT, each in its own scale from 0 to 1; `kind` says of what."""

    maps_BEhw: Tensor
    kind: str


def central_views(recipe: Recipe, samples: Sequence[Sample], *, scale: int) -> SeenViews | None:
    """The central views of samples, `scale` times as large as in training; None: no images.

    They go through the pipeline of the recipe, so they are what the encoder was evaluated on.
    """
    plain = enlarged_views(central(recipe, batch_size=len(samples)), scale)
    stored = [{"__key__": s.key, **s.members} for s in samples]
    with load(plain, shards=stored, device="cpu", rank=0, world_size=1) as pipeline:
        decider = pipeline.parts[0].decider
        if not isinstance(decider, ImageDecider):
            return None
        batch: Batch = next(iter(pipeline)).in_float32()
        views = batch.views["global"][0]
        return SeenViews(views, picture(views, decider.policies["global"]))


def enlarged_views(recipe: Recipe, scale: int) -> Recipe:
    """The recipe with its central crop `scale` times as large."""
    group = recipe.views["global"]
    crop, *rest = group.ops
    size, resize = crop.settings["size"], crop.settings["resize"]
    settings = {"size": tuple(scale * side for side in size), "resize": scale * resize}
    ops = (Entry(crop.name, settings, where=crop.where), *rest)
    view = group.model_copy(update={"ops": ops})
    return recipe.model_copy(update={"views": {"global": view}})


def scale_for(encoder: nn.Module) -> int:
    """How much larger than in training pictures may be, so that there are more places.

    Convolutions take any size, and our ViTs bring their positions along.
    """
    return 2 if isinstance(encoder, ViT | ResNet) else 1


def places(encoder: nn.Module, views_BCHW: Tensor) -> Tensor | None:
    """Features of each place, (B, D, h, w); None: the encoder shows none, or hardly any."""
    if not isinstance(encoder, MapEncoder):
        return None
    with evaluating(encoder):
        maps: Tensor = encoder.maps(views_BCHW).float()
    return maps if maps.ndim == 4 and maps.shape[-2:].numel() >= FEWEST else None


def in_colours(maps: Sequence[Tensor]) -> list[Pixels]:
    """Three principal components of maps (B, D, h, w) as red, green and blue: (B, h, w, 3) each.

    Maps of one width share basis and scale, each about its own mean: what has one colour in two
    pictures, or under two checkpoints, lies alike.
    """
    flat = [normalize(each, dim=1).permute(0, 2, 3, 1).double().numpy() for each in maps]
    centred = [each - each.mean(axis=(0, 1, 2)) for each in flat]
    found: dict[int, tuple[F64, F64]] = {}  # of each width D: axes (3, D), limits of the colours
    for width in {each.shape[-1] for each in centred}:
        rows = [each.reshape(-1, width) for each in centred if each.shape[-1] == width]
        rows_ND = np.concatenate(rows)
        axes_3D = basis(rows_ND, 3)
        found[width] = axes_3D, np.percentile(rows_ND @ axes_3D.T, TAILS, axis=0)
    axes_limits = [found[each.shape[-1]] for each in centred]
    pairs = zip(centred, axes_limits, strict=True)
    return [levels(each @ axes_3D.T, limits) for each, (axes_3D, limits) in pairs]


def levels(values: F64, limits: F64) -> Pixels:
    """Values between `limits` (2, ...) as 0 to 255."""
    low, high = limits
    share = (values - low) / np.maximum(high - low, 1e-12)
    return np.asarray((share * 255).round().clip(0, 255), dtype=np.uint8)


def attention(encoder: ViT, views_BCHW: Tensor) -> Attention:
    """What the class token of the last block attends to, per head.

    Of an encoder whose features are the mean of the patches, whose class token nobody trains: the
    cosine of every patch with the one in the middle instead, one map.
    """
    sides = along_axes(encoder.patch_size, 2)
    grid = tuple(n // side for n, side in zip(views_BCHW.shape[2:], sides, strict=True))
    if encoder.model.global_pool != "token":
        maps_BDhw = places(encoder, views_BCHW)
        assert maps_BDhw is not None
        maps_BDhw = normalize(maps_BDhw, dim=1)
        middle_BD11 = maps_BDhw[:, :, grid[0] // 2, grid[1] // 2, None, None]
        alike = (maps_BDhw * middle_BD11).sum(dim=1, keepdim=True)
        return Attention(min_max(alike), "similarity to the patch in the middle")
    weights_BET = class_row(encoder, views_BCHW)
    patches = weights_BET[..., 1:].reshape(*weights_BET.shape[:2], *grid)
    return Attention(min_max(patches), "attention of the class token, last block")


def class_row(encoder: ViT, views_BCHW: Tensor) -> Tensor:
    """Attention weights (B, E, T) of the class token in the last block, which sum to 1.

    timm's fused attention keeps no weights: they are computed once more from what goes in.
    """
    inputs: list[Tensor] = []
    module = encoder.model.blocks[-1].attn
    hook = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        with evaluating(encoder):
            encoder.tokens(views_BCHW)
            return weights_of(module, inputs[0])[:, :, 0]
    finally:
        hook.remove()


def weights_of(module: Any, tokens_BTD: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width)) of timm's Attention, (B, E, T, T)."""
    qkv = module.qkv(tokens_BTD)
    qkv = qkv.reshape(*qkv.shape[:2], 3, module.num_heads, -1)
    queries, keys, _ = qkv.permute(2, 0, 3, 1, 4)
    queries, keys = module.q_norm(queries), module.k_norm(keys)
    return torch.softmax(queries * module.scale @ keys.mT, dim=-1)


def min_max(maps: Tensor) -> Tensor:
    """Each map (..., h, w) from 0 at its least to 1 at its most."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def heat(map_hw: Tensor) -> Pixels:
    """A map in [0, 1] as colours from dark to light, (h, w, 3)."""
    stops = np.linspace(0, 1, len(RAMP))
    values = map_hw.double().numpy()
    channels = [np.interp(values, stops, RAMP[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
