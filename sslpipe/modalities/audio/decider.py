"""DECIDE for audio: where views begin, what ops draw, masks, and which distractors a step has."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ...batch import MaskSpec, TargetSpec, ViewSpec, whole_group
from ...errors import RecipeError
from ...masks import maskers
from ...recipe import Entry, Recipe
from ...recipe.names import call, choose
from ...recipe.schema import TargetSection, ViewSection
from ...rng import Keys, Place
from ...stream.by_length import LengthBuckets
from .. import Tables
from .op import I64
from .policy import CROP, SoundPolicy, sound_policy
from .tasks import TASKS, Cropped, SoundTask

FIXED = frozenset(
    {
        "Fbank",
        "MFCC",
        "MelSpectrogram",
        "Normalize",
        "PadFrames",
        "RemoveBandMean",
        "RemoveMean",
        "Standardize",
        "WhisperMel",
    }
)  # ops that draw nothing

BUCKETS = (3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the crop


class AudioDecider:
    """All that a recipe decides of its groups of sound, checked and ready.

    Raises:
        RecipeError: an op, mask or task that does not exist or does not suit; says file:line.
    """

    def __init__(self, recipe: Recipe, groups: Sequence[str]) -> None:
        self.seed = recipe.stream.seed
        self.policies = {name: sound_policy(name, recipe.views[name]) for name in groups}
        self.maskers = maskers(recipe.masks, self.views)
        self.fields = {name: recipe.masks[name].receptive_field for name in self.maskers}
        self.tasks: dict[str, tuple[SoundTask, TargetSpec]] = {}
        for name, target in recipe.targets.items():
            if target.view in groups:
                self.tasks[name] = sound_task(target, self.policies[target.view], self.masks)

    @cached_property  # asked for with every batch
    def views(self) -> dict[str, ViewSpec]:
        """The shape and dtype of each view group."""
        return {name: policy.spec for name, policy in self.policies.items()}

    @cached_property
    def masks(self) -> dict[str, MaskSpec]:
        """The grid that each mask covers, and what it hides of it."""
        return {name: masker.spec for name, masker in self.maskers.items()}

    @property
    def targets(self) -> dict[str, TargetSpec]:
        """What each task asks of a batch."""
        return {name: spec for name, (_, spec) in self.tasks.items()}

    @cached_property
    def turns(self) -> dict[str, I64]:
        """Which of a sample's partners each view of the groups that mix one in has, (V,) from 0."""
        found, first = {}, 0
        for name, policy in self.policies.items():
            if policy.mixes:
                count = 1 if policy.shared else policy.count
                found[name] = np.resize(np.arange(first, first + count), policy.count)
                first += count
        return found

    @property
    def partners(self) -> int:
        """How many partners of each sample are wanted: one for each view that is mixed."""
        return 1 + max((int(turns[-1]) for turns in self.turns.values()), default=-1)

    @property
    def summaries(self) -> dict[str, str]:
        """How many views of which size each group has, and its ops."""
        return {name: policy.summary for name, policy in self.policies.items()}

    def buckets(self, recipe: Recipe) -> LengthBuckets:
        """How long recordings are as waveforms, and how long batches of similar ones may be.

        Eight lengths at most, as many shapes; each is a half or a third more than the one before.

        Raises:
            RecipeError: there are several groups of sound, or spectrograms, whose encoders want
                one size.
        """
        (policy, *others), where = self.policies.values(), recipe.where("stream", "bucket")
        where += ": stream.bucket"
        if others or policy.spec.axes != "T":
            raise RecipeError(
                f"{where} cuts batches to the length of what is in them, which suits one group of "
                f"waveforms; views are {', '.join(self.policies)}, of axes {policy.spec.axes}: "
                "leave it out"
            )
        for name, spec in self.masks.items():
            if spec.most is None:
                raise RecipeError(
                    f"{where} cuts off padding, where masks.{name} may hide steps; let it know of "
                    "lengths: sampler: {spans: {counts: real}}"
                )
        crop, least = policy.crop, max([1, *(field or 1 for field in self.fields.values())])
        lengths = {round(crop.size * share) for share in BUCKETS}
        return LengthBuckets(
            lambda extents: np.asarray(
                crop.real(
                    extents[:, 0].astype(np.int64), np.maximum(extents[:, 1], 1).astype(np.int64)
                )
            ),
            tuple(sorted({*(length for length in lengths if length >= least), crop.size})),
        )

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """(B, views of all groups): the random word by which a view begins where it does.

        Not the place itself: the length of a recording may stand in no index (extents of zeros),
        and a worker finds the same place by `SoundCrop.start`.
        """
        return self._words(epochs, uids, "")

    def partner_instructions(self, *, epochs: I64, uids: I64, extents: I64, turns: I64) -> I64:
        """The same of partners, by the keys of the samples that they are for; -1: not wanted.

        turns: (B,), which partner each is. Of it those views are decoded that it is mixed into.
        """
        words = self._words(epochs, uids, "/partner")
        own, none = self.turns, np.array([-1])
        wanted = [
            own.get(name, none.repeat(policy.count)) for name, policy in self.policies.items()
        ]
        return np.where(turns[:, None] == np.concatenate(wanted), words, -1)

    def _words(self, epochs: I64, uids: I64, of: str) -> I64:
        words = [
            policy.words(policy.keys(seed=self.seed, epochs=epochs, uids=uids), of)
            for policy in self.policies.values()
        ]
        return np.concatenate(words).T

    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """The tables of a batch; extents: (B, 3) frames, rate and channels of its recordings.

        Those of partners may stand behind them; nothing else is drawn for them.
        """
        seed, own, length = self.seed, extents[: len(uids)], place.row_length
        words = {
            name: policy.words(policy.keys(seed=seed, epochs=epochs, uids=uids))
            for name, policy in self.policies.items()
        }
        masks = {
            name: masker.draw(
                seed=seed, epochs=epochs, uids=uids, place=place, real_B=self._real(name, own)
            )[..., : self._patches(name, length)]
            for name, masker in self.maskers.items()
        }
        return Tables(
            length=place.row_length,
            params={
                name: policy.draw(
                    policy.keys(seed=seed, epochs=epochs, uids=uids), own, words[name]
                )
                for name, policy in self.policies.items()
            },
            masks=masks,
            targets={
                name: task.draw(
                    Keys(seed, epochs, uids, np.arange(1)), f"targets/{name}", spec,
                    Cropped(self.policies[spec.view].crop, words[spec.view], own), masks,
                )
                for name, (task, spec) in self.tasks.items()
            },
            extents=extents,
        )  # fmt: skip

    def _real(self, name: str, extents: I64) -> I64 | None:
        """How many patches of a mask hold no padding, (B,), 1 at least; None: it does not look."""
        spec = self.maskers[name].spec
        if spec.most is None:
            return None
        real = self.policies[spec.view].real_steps(extents)[-1]
        field = self.fields[name] or spec.patch[0]
        return np.clip((real - field) // spec.patch[0] + 1, 1, spec.patches)

    def _patches(self, name: str, length: int) -> int:
        """How many patches of a mask views of a length have; 0: as long as views may be."""
        spec = self.maskers[name].spec
        if not length:
            return spec.patches
        return (length - (self.fields[name] or spec.patch[0])) // spec.patch[0] + 1


def sound_task(
    target: TargetSection, policy: SoundPolicy, masks: Mapping[str, MaskSpec]
) -> tuple[SoundTask, TargetSpec]:
    """A task and what it asks for.

    Raises:
        RecipeError: unknown task or setting, or a crop, masks or a file that do not suit it.
    """
    entry = target.task
    task: SoundTask = call(choose(entry, TASKS, "task on audio"), entry)
    try:
        return task, task.spec(target.view, policy.crop, masks)
    except ValueError as error:
        raise RecipeError(entry.told(str(error))) from error


def evaluation_views(recipe: Recipe, groups: Sequence[str]) -> dict[str, ViewSection]:
    """One view per sample, from the middle, through the ops that draw nothing."""
    group = recipe.views[whole_group(groups)]
    crop = Entry(CROP, {**group.ops[0].settings, "place": "centre"}, group.ops[0].where)
    if group.ops[0].settings.get("place") == "start":
        crop = group.ops[0]
    fixed = [op for op in group.ops[1:] if op.name in FIXED]
    return {"global": ViewSection(ops=(crop, *fixed))}
