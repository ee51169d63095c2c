"""A recipe: YAML -> frozen, validated Recipe, with file:line in every message.

It checks the shape of the file: sections, keys, types. What an op, mask, task, method or optimizer
accepts is checked by its own signature (lookup.py) when the pipeline or the trainer is built; for
that every entry carries the place where it stands.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import pydantic

from .errors import RecipeError
from .lookup import Entry, suggest
from .rates import Positive, Rates
from .yamlfile import Place, YamlFile, parse_yaml

NONE: Mapping[str, Any] = MappingProxyType({})


def parse_entry(value: Any, info: pydantic.ValidationInfo) -> Entry:
    """`name`, `name: {...}` or `{name: {...}}` -> Entry; its place is filled in by `located`."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, str):
        return Entry(value)
    if isinstance(value, dict) and len(value) == 1:
        ((name, settings),) = value.items()
        if isinstance(name, str) and (settings is None or isinstance(settings, dict)):
            return Entry(name, settings or {})
    raise ValueError("write a name, or one name with its settings: {name: {setting: value}}")


Named = Annotated[Entry, pydantic.BeforeValidator(parse_entry)]
Weight = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class Section(pydantic.BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Stream(Section):
    """Which samples, in which order."""

    batch_size: Positive  # global, over all ranks
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    order: Literal["lanes", "global", "sequential"] = "lanes"
    lanes: Positive | None = None  # None: the largest divisor of batch_size up to 256
    window: Positive = 4  # shards per window of a lane
    remainder: Literal["wrap", "drop", "pad", "short"] | None = None  # None: wrap; sequential short
    mix: Annotated[dict[str, Weight], pydantic.Field(min_length=1)] | None = None  # None: by size
    epoch_samples: Positive | None = None  # over all ranks; None: what the data has
    on_bad: Literal["raise", "replace", "mask", "exclude"] = "replace"
    max_bad_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.001  # stops the run


class Decode(Section):
    """How bytes become canvases."""

    size: Positive | None = None  # pixels: larger canvases are shrunk to this shorter side
    scaled: Literal["auto", "never"] = "auto"  # auto: no finer than the views of a sample can show
    device: Literal["cpu", "cuda"] = "cpu"  # not under run: their pixels differ


class Views(Section):
    """One view group."""

    count: Positive = 1
    draws: Literal["per_view", "shared"] = "per_view"  # shared: all views draw as view 0 does
    ops: tuple[Named, ...]


class Mask(Section):
    """Masks over the patches of one view group."""

    view: str = "global"
    count: Positive = 1
    patch_size: Positive  # pixels
    sampler: Named


class Target(Section):
    """A pretext task on one view group."""

    view: str = "global"
    task: Named


class Train(Rates, Section):
    """Settings of the reference trainer; a user's own trainer ignores them."""

    backbone: Named
    optimizer: Named  # its lr is stated for a global batch of lr_batch
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Positive = 1  # batches per optimizer step
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = None
    clip: Literal["global", "per_module", "per_parameter"] = "global"

    @pydantic.field_validator("clip")
    @classmethod
    def _has_a_norm(cls, value: str, info: pydantic.ValidationInfo) -> str:
        """Without a norm nothing would be clipped."""
        if value != "global" and info.data.get("clip_norm") is None:
            raise ValueError("is of no use without clip_norm; set it, e.g. to 3.0")
        return value


class Run(Section):
    """Speed only: nothing here may change a result (executors: but for the rounding of pixels)."""

    threads: Positive | Literal["auto"] = "auto"  # to decode and to augment; auto: one per core
    executor: Literal["auto", "kornia", "cpu", "compiled", "triton"] = "auto"  # makes the pixels
    prefetch: Annotated[int, pydantic.Field(ge=0)] = 2  # batches made ahead
    cache: str | None = None  # folder on this node for shards that lie elsewhere; None: none
    cache_gb: Annotated[float, pydantic.Field(gt=0)] | None = None  # None: 0.9 of the free disk


class Recipe(Section):
    """A validated recipe. `fingerprint` covers everything but `run`."""

    path: str = pydantic.Field(exclude=True, default="<recipe>")
    modality: Literal["image"] = "image"
    stream: Stream
    decode: Decode = Decode()
    views: dict[str, Views]
    masks: dict[str, Mask] = {}
    targets: dict[str, Target] = {}
    method: Named | None = None
    train: Train | None = None
    run: Run = Run()

    @property
    def data_fingerprint(self) -> str:
        """Hash of what decides the batches: everything but `method`, `train` and `run`."""
        return digest(self, exclude={"method", "train", "run"})

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a result: all but `run`."""
        return digest(self, exclude={"run"})


def digest(recipe: Recipe, exclude: set[str]) -> str:
    """blake2b of the canonical JSON of a recipe, without places."""
    data = plain(recipe.model_dump(exclude=exclude))
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return "b2:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def plain(value: Any) -> Any:
    """Nested data with entries as [name, settings]: their places do not count."""
    if isinstance(value, Entry):
        return [value.name, plain(value.settings)]
    if isinstance(value, Mapping):
        if set(value) == {"name", "settings", "where"}:
            return [value["name"], plain(value["settings"])]
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file; overrides are `section.key=value`.

    Raises:
        RecipeError: the file is missing, is not YAML, or breaks the schema; says file:line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return parse_recipe(text, path=str(path), overrides=overrides)


def find_recipe(name: str | Path) -> Path:
    """A path as it is; a bare name among the recipes that ship with the package.

    Raises:
        RecipeError: neither exists; says which recipes there are.
    """
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        return path
    shipped = recipes()
    if str(name) not in shipped:
        raise RecipeError(
            f"recipe {str(name)!r}: no such file and no such recipe; {suggest(str(name), shipped)}"
        )
    return shipped[str(name)]


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    inside = Path(__file__).parent / "pipelines"  # in a wheel
    folder = inside if inside.is_dir() else Path(__file__).parents[1] / "pipelines"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def parse_recipe(text: str, *, path: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """Validate the text of a recipe.

    Raises:
        RecipeError: it is not YAML, or breaks the schema; says file:line.
    """
    source = parse_yaml(text, path, overrides)
    if not isinstance(source.data, dict):
        raise RecipeError(f"{path}:1: a recipe is a mapping of sections; see pipelines/README.md")
    try:
        recipe = Recipe.model_validate({**located(source.data, (), source), "path": path})
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, source)) from None
    check_names(recipe, source)
    return recipe


ENTRIES = ("ops", "sampler", "task", "method", "backbone", "optimizer")


def located(data: Any, place: Place, source: YamlFile) -> Any:
    """Turn the named entries into Entry objects that know their file:line."""
    if isinstance(data, dict):
        return {k: located_value(k, v, (*place, k), source) for k, v in data.items()}
    return data


def located_value(key: str, value: Any, place: Place, source: YamlFile) -> Any:
    """One value of a section: an entry, a list of entries, or a deeper section."""
    if key not in ENTRIES:
        return located(value, place, source)
    if key == "ops" and isinstance(value, list):
        return [to_entry(v, (*place, i), source) for i, v in enumerate(value)]
    return to_entry(value, place, source)


def to_entry(value: Any, place: Place, source: YamlFile) -> Entry:
    """An Entry with its place.

    Raises:
        RecipeError: it is neither a name nor one name with settings.
    """
    try:
        entry = parse_entry(value, None)  # type: ignore[arg-type]
    except ValueError as error:
        raise RecipeError(f"{source.where(place)}: {value!r} is no entry; {error}") from None
    return Entry(entry.name, entry.settings, source.where((*place, entry.name)))


def explain(error: pydantic.ValidationError, source: YamlFile) -> str:
    """The first fault of a failed validation as one sentence with file:line."""
    faults = error.errors()  # a misspelt key is also a missing one: say the first
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    place = tuple(part for part in fault["loc"] if part != "[key]")
    where, name = source.where(place), ".".join(map(str, place))
    if fault["type"] == "extra_forbidden":
        known = known_keys(place[:-1])
        return f"{where}: unknown key {place[-1]!r}; {suggest(str(place[-1]), known)}"
    if fault["type"] == "missing":
        return f"{where}: {name} is missing; add it (see pipelines/README.md)"
    return f"{where}: {name} = {fault['input']!r}: {fault['msg'].lower()}; correct the value"


SECTIONS: Mapping[str, type[Section]] = {
    "stream": Stream, "decode": Decode, "views": Views, "masks": Mask, "targets": Target,
    "train": Train, "run": Run,
}  # fmt: skip


def known_keys(place: Place) -> list[str]:
    """The keys that a section knows."""
    model = SECTIONS.get(str(place[0]), Recipe) if place else Recipe
    return [name for name in model.model_fields if name != "path"]


def check_names(recipe: Recipe, source: YamlFile) -> None:
    """Masks and targets must point at a view group that exists."""
    for section, entries in (("masks", recipe.masks), ("targets", recipe.targets)):
        for name, entry in entries.items():
            if entry.view not in recipe.views:
                raise RecipeError(
                    f"{source.where((section, name, 'view'))}: {section}.{name}.view = "
                    f"{entry.view!r} is no view group; {suggest(entry.view, recipe.views)}"
                )
