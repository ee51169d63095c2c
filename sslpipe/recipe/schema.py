"""The schema of a recipe: its sections, keys and types. `parse.py` makes a Recipe of a file.

What an op, a mask or a method accepts its own signature checks (names.py) when it is built.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from .names import MOST, Entry
from .sections import (
    Always,
    Count,
    Fraction,
    Info,
    Named,
    PlacedSection,
    Positive,
    Section,
    Share,
    Text,
    Weight,
    WrittenSection,
)  # fmt: skip

SIDE = 65_535  # pixels of the longest side that a JPEG can have
CROWD = 1024  # of processes, threads, batches: more than any machine has use for


class RowsSection(Section):
    """Says how documents are packed in rows, which are what a batch is then made of."""

    packing: Literal[
        "one", "split", "overlap", "concat", "best_fit", "sentences", "doc_sentences"
    ] = "best_fit"
    window: Positive = 1024  # documents that are packed together
    bucket: bool = False  # batches of rows of similar length, padded to the longest; one and split

    @pydantic.field_validator("bucket")
    @classmethod
    def _has_short_rows(cls, value: bool, info: Info) -> bool:
        """Rows of several documents are full, so there is nothing to sort them by."""
        if value and info.data.get("packing") not in ("one", "split"):
            raise ValueError("is for packing: one or split; rows of several documents are full")
        return value


class BucketSection(Section):
    """Says that batches are of samples of similar lengths, padded to the longest."""

    window: Positive = 1024  # samples that are sorted together


class HoldoutSection(Section):
    """Says which share of the samples is kept apart, by their uids alone, and which part comes.

    No seed has a say in it: all runs that hold out as much hold out the same samples, and a larger
    share contains a smaller one.
    """

    fraction: Annotated[float, pydantic.Field(gt=0, lt=1)]
    part: Literal["train", "held_out"] = "train"


class StreamSection(Section):
    """Says which samples come, in which order, and what becomes of bad ones."""

    batch_size: Positive  # global, over all ranks
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    order: Literal["lanes", "global", "sequential"] = "lanes"
    rows: RowsSection | None = None  # of text: None: each document is a sample
    bucket: BucketSection | None = None  # of sound; None: batches are as long as a view may be
    holdout: HoldoutSection | None = None  # None: all samples come
    lanes: Positive | None = None  # None: the largest divisor of batch_size up to 256
    window: Positive = 4  # shards per window of a lane
    remainder: Literal["wrap", "drop", "pad", "short"] | None = None  # None: wrap; sequential short
    mix: Annotated[dict[str, Weight], pydantic.Field(min_length=1)] | None = None  # None: by size
    labels: Text | None = None  # a file of labels by uid, which go before those of the shards
    allow_repeats: bool = False  # a batch larger than the set, with copies of a sample in it
    epoch_samples: Positive | None = None  # over all ranks; None: what the data has
    on_bad: Literal["raise", "replace", "mask", "exclude"] = "replace"
    max_bad_fraction: Share = 0.001  # stops the run


class DecodeSection(Section):
    """Says how large canvases are that bytes become, and what decodes them."""

    # pixels: larger canvases are shrunk to this shorter side
    size: Annotated[int, pydantic.Field(gt=0, le=SIDE)] | None = None
    scaled: Literal["auto", "never"] = "auto"  # auto: no finer than the views of a sample can show
    device: Literal["cpu", "cuda"] = "cpu"  # not under run: their pixels differ


class ViewSection(Section):
    """Says how many views of one size and policy a sample has, and which ops make them."""

    modality: Text | None = None  # None: the recipe's
    count: Count = 1
    draws: Literal["per_view", "shared"] = "per_view"  # shared: all views draw as view 0 does
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the finished views
    ops: Annotated[tuple[Named, ...], pydantic.Field(min_length=1)]


class MaskSection(PlacedSection):
    """Says which patches of one view group are hidden, by which sampler."""

    view: Text = "global"
    count: Count = 1
    # pixels; of clips also [frames, pixels, pixels], one size for each masked axis; of waveforms
    # the samples between patches
    patch_size: Positive | Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
    receptive_field: Positive | None = None  # samples that a patch sees; None: its patch_size
    sampler: Named


class TargetSection(Section):
    """Says which pretext task changes a view group and asks for a target."""

    view: Text = "global"
    task: Named


class Rates(Section):
    """Says how long a run is and how its rates change: a part of the train section."""

    epochs: Positive
    lr_batch: Positive = 256
    lr_rule: Literal["linear", "sqrt"] = "linear"  # how lr grows with the batch
    schedule: Literal["cosine", "cosine_per_epoch", "linear", "multistep"] = "cosine"
    milestones: Annotated[tuple[Positive, ...], Always] = ()  # epochs; multistep only
    gamma: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1  # factor of each milestone
    # cosines are laid over this many times the run, which ends before they do (MSN)
    schedule_stretch: Annotated[float, pydantic.Field(ge=1)] = 1.0
    final_lr: Fraction = 0.0  # absolute, not scaled; of cosines and lines
    final_lr_ratio: Share | None = None  # the same, as a share of the peak
    final_weight_decay: Fraction | None = None  # None: constant
    warmup_epochs: Fraction = 0.0
    warmup_lr: Fraction = 0.0  # absolute, where the warm-up starts

    @pydantic.field_validator("milestones")
    @classmethod
    def _fit_the_schedule(cls, value: tuple[int, ...], info: Info) -> tuple[int, ...]:
        """Milestones and the multistep schedule come together, in order, before the end."""
        if (info.data.get("schedule") == "multistep") != bool(value):
            raise ValueError("schedule: multistep needs milestones, and only it has them; set both")
        last = info.data.get("epochs", 0)
        if list(value) != sorted({*value}) or value[-1:] >= (last,):
            raise ValueError(f"must rise and lie before train.epochs = {last}; set them too")
        return value

    @pydantic.field_validator("warmup_epochs")
    @classmethod
    def _reach_the_peak(cls, value: float, info: Info) -> float:
        # else the learning rate that the recipe names is never taken
        if value > (epochs := info.data.get("epochs", math.inf)):
            raise ValueError(f"must not be longer than train.epochs = {epochs}; set it too")
        return value

    @pydantic.field_validator("final_lr", "final_lr_ratio")
    @classmethod
    def _one_end(cls, value: float | None, info: Info) -> float | None:
        """A cosine or a line has one end, a multistep schedule none."""
        if value and (info.data.get("schedule") == "multistep" or info.data.get("final_lr")):
            raise ValueError(
                "is for cosines and lines, and one of final_lr and final_lr_ratio is enough"
            )
        return value


class MonitorSection(Section):
    """Says how often and by what a run is evaluated while it goes on; no weight depends on it."""

    every_epochs: Positive = 5  # and at the end of the run
    # of evaluate/during_training.py; the first number of the first one says what best.pt is
    protocols: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = ("knn",)
    samples: Annotated[int, pydantic.Field(ge=2, le=MOST)] = (
        10_000  # of a set at most, chosen by uid
    )
    patience: Positive = 5  # evaluations without a better one before it is said


class TrainSection(Rates):
    """Settings that the reference trainer follows; a user's own trainer ignores them."""

    backbone: Named
    optimizer: Named  # its lr is stated for a global batch of lr_batch
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Positive = 1  # batches per optimizer step
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = None
    clip: Literal["global", "per_module", "per_parameter"] = "global"
    # these are not under the fingerprint: they change no result but by rounding
    parallel: Literal["ddp", "fsdp"] = "ddp"  # a copy on each rank, or a part of each parameter
    checkpoint_activations: bool = False  # of blocks: computed again in backward, not kept
    compile: bool = False  # the forward pass, by torch.compile
    monitor: MonitorSection | None = None  # it only looks

    @pydantic.field_validator("parallel")
    @classmethod
    def _can_be_cut(cls, value: str, info: Info) -> str:
        """Some ways to train do not work on parts of parameters."""
        optimizer = info.data.get("optimizer")
        if value == "fsdp" and info.data.get("precision") == "fp16":
            raise ValueError("fsdp trains in bf16 or fp32; set precision, or parallel: ddp")
        if value == "fsdp" and optimizer is not None and optimizer.name == "adafactor":
            raise ValueError(
                "fsdp cuts what adafactor takes rows and columns of; choose another optimizer, "
                "or parallel: ddp"
            )
        return value

    @pydantic.field_validator("clip")
    @classmethod
    def _has_a_norm(cls, value: str, info: pydantic.ValidationInfo) -> str:
        """A way to clip needs a norm: without one nothing would be clipped."""
        if value != "global" and info.data.get("clip_norm") is None:
            raise ValueError("is of no use without clip_norm; set it, e.g. to 3.0")
        return value


class RunSection(Section):
    """Decides speed only: no key may change a result, but an executor rounds pixels its own way."""

    # processes that read and decode; 0: this one does
    workers: Annotated[int, pydantic.Field(ge=0, le=CROWD)] | Literal["auto"] = "auto"
    patience: Weight = 120.0  # seconds that a worker may take over one sample
    # that augment on a CPU; auto: one per core
    threads: Annotated[int, pydantic.Field(gt=0, le=CROWD)] | Literal["auto"] = "auto"
    executor: Literal["auto", "kornia", "cpu", "compiled", "triton"] = "auto"  # makes the pixels
    prefetch: Annotated[int, pydantic.Field(ge=0, le=CROWD)] = 2  # batches made ahead
    cache: Text | None = None  # folder on this node for shards that lie elsewhere; None: none
    cache_gb: Annotated[float, pydantic.Field(gt=0)] | None = None  # None: 0.9 of the free disk


class Recipe(WrittenSection):
    """A validated recipe. `fingerprint` covers everything but `run` and FREE of `train`."""

    modality: Text = "image"  # a folder of modalities/, or package.module:Thing
    stream: StreamSection
    decode: DecodeSection = DecodeSection()
    views: dict[str, ViewSection]
    masks: dict[str, MaskSection] = pydantic.Field(default_factory=dict)
    targets: dict[str, TargetSection] = pydantic.Field(default_factory=dict)
    method: Named | None = None
    train: TrainSection | None = None
    run: RunSection = RunSection()

    @property
    def data_fingerprint(self) -> str:
        """Hash of what decides the batches: everything but `method`, `train` and `run`."""
        return digest(self, exclude={"method", "train", "run"})

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a result: all but `run` and FREE of `train`."""
        return digest(self, exclude={"run"})


# keys of `train` that change no result, as none of `run` does
FREE = ("parallel", "checkpoint_activations", "compile", "monitor")
# what a view group need not say hashes as before it could be said
UNSAID = (
    ("modality", None), ("dtype", "float32"), ("rows", None), ("receptive_field", None),
    ("bucket", False), ("bucket", None), ("holdout", None),
)  # fmt: skip


def digest(recipe: Recipe, exclude: set[str]) -> str:
    """Hash the canonical JSON of a recipe, without the places of its entries, by blake2b."""
    data = plain(recipe.model_dump(exclude=exclude))
    del data["stream"]["allow_repeats"]  # it refuses batches, and changes none
    del data["stream"]["labels"]  # what the file holds is part of the source's identity, as shards
    if data.get("train"):
        for name in FREE:
            del data["train"][name]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return "b2:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def plain(value: Any) -> Any:
    """Make nested data of a recipe, entries as [name, settings]: their places do not count."""
    if isinstance(value, Entry):
        return [value.name, plain(value.settings)]
    if isinstance(value, Mapping):
        if set(value) == {"name", "settings", "where", "lines"}:
            return [value["name"], plain(value["settings"])]
        return {str(k): plain(v) for k, v in value.items() if (k, v) not in UNSAID}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


SECTIONS: Mapping[str, type[Section]] = {
    "stream": StreamSection, "decode": DecodeSection, "views": ViewSection,
    "masks": MaskSection, "targets": TargetSection, "train": TrainSection, "run": RunSection,
    "train.monitor": MonitorSection, "stream.rows": RowsSection, "stream.holdout": HoldoutSection,
}  # fmt: skip
