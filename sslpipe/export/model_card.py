"""The model card, README.md of an export: what it is, how it was made, what was measured.

Nothing is assumed: the licence is "other" until somebody says it, and results are those of a file
that `sslpipe eval --json` printed. The head is Hugging Face's YAML, written by their library.
"""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..encoders.central_view import CentralView
from ..encoders.library_encoders import ViT
from ..errors import SslpipeError
from ..recipe import Recipe
from ..shards.side_files import parse_json
from .clip_weights import is_of_clips, pools_patches
from .formats import blueprint_of
from .preprocessing import central_view, clip_frames
from .trained import Trained

TRAINED = "trained"  # the encoder among those that are measured beside it
IMAGES, CLIPS = "image-feature-extraction", "feature-extraction"  # tasks, as model hubs name them
TAGS = ("self-supervised", "sslpipe")

HOW = {
    "timm": """```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
features = model(transform(image)[None])  # (1, {dim})
```""",
    "hf": """```python
from transformers import AutoImageProcessor, AutoModel

processor, model = (kind.from_pretrained("{folder}") for kind in (AutoImageProcessor, AutoModel))
features = model(**processor(image, return_tensors="pt")).pooler_output  # (1, {dim})
```""",
    "torchvision": """```python
import torch
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{name}()
model.load_state_dict(load_file("{folder}/torchvision.safetensors"), strict=False)
model.fc = torch.nn.Identity()  # fc.weight and fc.bias are all that is missing
```""",
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
(features,) = session.run(["features"], {{"images": images}})  # (B, {shape}) float32
```""",
}
CLIPS_HOW = {
    "hf": """```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{folder}/transformers").eval()
hidden = model(clips.transpose(1, 2)).last_hidden_state  # clips: (B, {shape})
features = hidden{pooled}  # (B, {dim})
```""",
    "torchvision": HOW["torchvision"].replace("models.{name}()", "models.video.{name}()"),
}


@dataclass(frozen=True, slots=True)
class CardRow:
    """One measured number with the protocol that made it; `protocol` may be empty."""

    name: str
    value: float
    protocol: str


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What to write of which encoder; the defaults are all that is possible, as the paper does."""

    formats: tuple[str, ...] | None = None  # None: all that are possible
    branch: str = "auto"  # "teacher", "student", or the one that the method keeps
    license_name: str = "other"
    measures: tuple[CardRow, ...] = ()
    overwrite: bool = False  # put a folder aside that is there and no export of ours


def read_measures(path: Path) -> tuple[CardRow, ...]:
    """Read what `sslpipe eval --json` printed of the trained encoder.

    A measure is a number, or an object with `value` and `protocol`.

    Raises:
        SslpipeError: it is no such file, or a number is none.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        return tuple(rows(content[TRAINED]))
    except OSError as error:
        raise SslpipeError(f"{path}: cannot be read ({error.strerror}); name a file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SslpipeError(
            f"{path}: holds no measures of a {TRAINED!r} encoder ({type(error).__name__}: {error});"
            " write it by: sslpipe eval CHECKPOINT SHARDS --json > measures.json"
        ) from error


def rows(measures: Mapping[str, Any]) -> Iterator[CardRow]:
    """Make rows of the measures of one encoder.

    Raises:
        ValueError: a value is no finite number.
    """
    for name, found in measures.items():
        value = found["value"] if isinstance(found, dict) else found
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}")
        protocol = found.get("protocol", "") if isinstance(found, dict) else ""
        yield CardRow(name, float(value), str(protocol))


def card(
    trained: Trained,
    *,
    name: str,
    formats: Sequence[str],
    license_name: str,
    measures: Sequence[CardRow],
) -> str:
    """Write the card of the model `name`, which is the name of its folder."""
    view, library = central_view(trained.recipe), "timm" if "timm" in formats else None
    task = CLIPS if is_of_clips(trained.encoder) else IMAGES
    parts = [
        head(name, license_name, measures, task=task, library=library),
        f"# {name}",
        about(trained),
        *usage(trained, name, formats),
        "## Pictures",
        frames_words(trained.recipe) + pictures(view),
        *results(measures),
        "## Recipe",
        "The same as `recipe.yaml`; `sslpipe train recipe.yaml --shards SHARDS` trains it again.",
        f"```yaml\n{trained.recipe_yaml.rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def head(
    name: str,
    license_name: str,
    measures: Sequence[CardRow],
    *,
    task: str,
    library: str | None,
) -> str:
    """The YAML between `---` that model hubs read; library: what loads the folder."""
    hub = importlib.import_module("huggingface_hub")
    found = [
        hub.EvalResult(
            task_type=task,
            dataset_type="webdataset",
            dataset_name="labelled shards",
            metric_type=row.name.replace(" ", "_"),
            metric_name=row.name,
            metric_value=round(row.value, 4),
        )
        for row in measures
    ]
    data = hub.ModelCardData(
        license=license_name,
        library_name=library,
        pipeline_tag=task,
        tags=[task, *TAGS] if library is None else [task, *TAGS, library],
        model_name=name if found else None,
        eval_results=found or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def about(trained: Trained) -> str:
    """What was trained, how long, on what."""
    recipe = trained.recipe
    assert recipe.method is not None
    assert recipe.train is not None
    shown = "clips" if is_of_clips(trained.encoder) else "images"
    return (
        f"A {recipe.train.backbone.name} without a classifier, pretrained without labels by "
        f"sslpipe: method `{recipe.method.name}` ({trained.branch}), after {trained.step:,} "
        f"steps of {recipe.stream.batch_size * recipe.train.accumulate} {shown}. "
        f"Features have {trained.features(trained.examples(1)).shape[1]} numbers.\n\n"
        f"{origins(trained)}"
    )


def origins(trained: Trained) -> str:
    """What a list says of recipe, data and first weights."""
    begun = "random weights"
    if trained.start is not None:  # whose licence and data are this model's, too
        begun = f"`{Path(trained.start['source']).name}`, weights `{trained.start['digest']}`"
    return (
        f"- recipe: `{trained.recipe.fingerprint}`\n"
        f"- training data: `{trained.data}` (fingerprint of the shards)\n"
        f"- began from: {begun}"
    )


def usage(trained: Trained, folder: str, formats: Sequence[str]) -> Iterator[str]:
    """How each of the formats is loaded, beside the folder."""
    made = blueprint_of(trained.encoder)
    words = {
        "folder": folder,
        "name": made.name if made else "",
        "dim": trained.features(trained.examples(1)).shape[1],
        "shape": ", ".join(map(str, trained.shape)),
        "pooled": "[:, 1:].mean(1)" if pools_patches(trained) else "[:, 0]",
    }
    yield "## Use"
    clips = is_of_clips(trained.encoder)
    for name in formats:
        how = {**HOW, **CLIPS_HOW} if clips else HOW
        yield how[name].format(**words)
    encoder = trained.encoder
    if isinstance(encoder, ViT) and encoder.resample != "antialias":
        yield (
            f"At other sizes timm interpolates positions with antialiasing, training did it by "
            f"`{encoder.resample}`: there, features differ a little."
        )
    yield f"`sslpipe train RECIPE --shards SHARDS --from {folder}` starts from these weights."


def frames_words(recipe: Recipe) -> str:
    """Which frames of a video are shown; empty: pictures are no clips."""
    clip = clip_frames(recipe)
    words = "{frames} frames about the middle of a video, {stride} from one to the next. "
    return words.format(**clip) if clip else ""


def pictures(view: CentralView) -> str:
    """What the encoder is to be shown."""
    size = f"{view.size[0]} x {view.size[1]} px"
    resized = f"squeezed to {size}"
    if view.resize is not None:
        resized = f"the shorter side resized to {view.resize} px, the central {size} cut out"
    return (
        f"In [0, 1], {resized} ({view.interpolation}, antialiased), then (x - mean) / std with "
        f"mean {list(view.mean)} and std {list(view.std)}: `preprocessing.json`."
    )


def results(measures: Sequence[CardRow]) -> Iterator[str]:
    """A table of the measures, if there are any."""
    if measures:
        yield "## Measured"
        lines = [f"| {row.name} | {row.value:.4g} | {row.protocol} |" for row in measures]
        yield "\n".join(["| what | value | protocol |", "|---|---|---|", *lines])
