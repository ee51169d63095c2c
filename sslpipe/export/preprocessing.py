"""How an image becomes what an exported encoder was shown: size, crop, mean, std, interpolation."""

import math
from dataclasses import dataclass

from ..errors import SslpipeError
from ..modalities.image.ops.colour import Normalize
from ..modalities.image.ops.crops import CenterCrop, Resize
from ..modalities.parts import find_modality
from ..modalities.video.clips import CLIPS
from ..recipe import Recipe
from ..recipe.names import Entry, call

Channels = tuple[float, float, float]
CROPS = {kind.__name__: kind for kind in (CenterCrop, Resize)}
UNCHANGED: tuple[Channels, Channels] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True)
class CentralView:
    """The view of evaluation: resize the shorter side, crop the centre, then (x - mean) / std.

    x is in [0, 1]. Sizes in pixels.
    """

    size: tuple[int, int]  # height, width
    resize: int | None  # of the shorter side; None: the whole image is squeezed to `size`
    mean: Channels
    std: Channels
    interpolation: str  # with antialiasing

    @property
    def crop_pct(self) -> float:
        """What timm resizes by: the shorter side becomes floor(size / crop_pct)."""
        if self.resize is None:
            return 1.0
        share = max(self.size) / self.resize
        while math.floor(max(self.size) / share) < self.resize:  # a quotient just below an integer
            share = math.nextafter(share, 0.0)
        return share


def evaluation_ops(recipe: Recipe) -> tuple[Entry, ...]:
    """The ops of the one view on which encoders of a recipe are evaluated."""
    (view,) = find_modality(recipe.modality, recipe.path).evaluation_views(recipe).values()
    return tuple(view.ops)


def clip_frames(recipe: Recipe) -> dict[str, int]:
    """Frames of a clip about the middle of a video, and the stride; {}: they are no clips."""
    first = evaluation_ops(recipe)[0]
    if first.name not in CLIPS:
        return {}
    sampling = call(CLIPS[first.name], first)
    return {"frames": sampling.frames, "stride": sampling.stride}


def central_view(recipe: Recipe) -> CentralView:
    """The view on which encoders of a recipe are evaluated, with the mean and std of training.

    Raises:
        SslpipeError: a modality of the user's evaluates on something else than a central crop.
    """
    ops = [op for op in evaluation_ops(recipe) if op.name not in CLIPS]
    names = [op.name for op in ops]
    if not names or names[0] not in CROPS or names[1:] not in ([], ["Normalize"]):
        raise SslpipeError(
            f"{recipe.path}: encoders of modality {recipe.modality!r} are evaluated on "
            f"{', '.join(names)}; libraries can be told of {' or '.join(CROPS)}, then Normalize"
        )
    crop = call(CROPS[names[0]], ops[0])
    resize = (crop.resize or max(crop.size)) if isinstance(crop, CenterCrop) else None
    mean, std = UNCHANGED
    for op in ops[1:]:
        normalize = call(Normalize, op)
        mean, std = normalize.mean, normalize.std
    return CentralView(crop.size, resize, mean, std, crop.resample)
