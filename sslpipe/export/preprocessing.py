"""How an image becomes what an exported encoder was shown: size, crop, mean, std, interpolation."""

from ..encoders.central_view import CentralView, Channels
from ..errors import SslpipeError
from ..modalities.finding import modality_of
from ..modalities.image.ops.colour import Normalize
from ..modalities.image.ops.crops import CenterCrop, Resize
from ..modalities.video.clips import CLIPS
from ..recipe import Recipe
from ..recipe.names import Entry, call

CROPS = {kind.__name__: kind for kind in (CenterCrop, Resize)}
UNCHANGED: tuple[Channels, Channels] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def evaluation_ops(recipe: Recipe) -> tuple[Entry, ...]:
    """The ops of the one view on which encoders of a recipe are evaluated."""
    (view,) = modality_of(recipe).evaluation_views(recipe).values()
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
            f"{recipe.where('modality')}: encoders of modality {recipe.modality!r} are evaluated "
            f"on {', '.join(names)}; libraries can be told of {' or '.join(CROPS)}, then Normalize"
        )
    crop = call(CROPS[names[0]], ops[0])
    resize = (crop.resize or max(crop.size)) if isinstance(crop, CenterCrop) else None
    mean, std = UNCHANGED
    for op in ops[1:]:
        normalize = call(Normalize, op)
        mean, std = normalize.mean, normalize.std
    return CentralView(crop.size, resize, mean, std, crop.resample)
