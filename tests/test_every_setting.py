"""Every field of the schema and every setting of an entry, with what no user may write there.

What is refused is one line `where: what, value; what to do`; the rest is a number that can be used.
"""

import copy
import math
import re

import pytest
import yaml

from sslpipe.batch import ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.masks import SAMPLERS
from sslpipe.methods import METHODS
from sslpipe.modalities.audio.policy import OPS as SOUND_OPS
from sslpipe.modalities.audio.tasks import TASKS as SOUND_TASKS
from sslpipe.modalities.image.draws import OPS
from sslpipe.modalities.image.targets import TASKS
from sslpipe.modalities.text.decider import TASKS as TEXT_TASKS
from sslpipe.recipe import load_recipe, parse_recipe, recipes
from sslpipe.recipe.names import Entry, bind, call, keyword_settings
from sslpipe.recipe.schema import SECTIONS, Recipe

RECIPE = """
modality: image
stream: {batch_size: 8}
views: {global: {count: 2, ops: [{RandomResizedCrop: {size: [32, 32]}}, Normalize]}}
masks: {random: {patch_size: 8, sampler: random}}
targets: {turn: {task: rotation}}
method: simclr
train: {backbone: resnet18, optimizer: {sgd: {lr: 0.1}}, epochs: 2}
"""
WRONG = [
    "x", "", "a\nb", "x" * 999, -1, 2**40, 10**40, -(10**40), math.nan, math.inf, 1e300, 1e-300,
    None, [], [1], [[]], {}, {"a": 1}, {1: 2}, True, "1e3",
]  # fmt: skip
NEVER = [math.nan, math.inf, 1e300, 1e-300, 10**40, -(10**40), [[]], {1: 2}]  # of use nowhere
GROUPS = {"views": "global", "masks": "random", "targets": "turn"}
LINE = re.compile(r"r\.yaml(:\d+)?: [^\n]+; [^\n]+")


def fields():
    """The place of every field of a recipe."""
    for section, model in {"": Recipe, **SECTIONS}.items():
        above = section.split(".") if section else []
        group = [GROUPS[section]] if section in GROUPS else []
        yield from ((*above, *group, name) for name in model.model_fields if name != "path")


def with_value(place, value):
    """The recipe with a value at a place."""
    data = copy.deepcopy(yaml.safe_load(RECIPE))
    inner = data
    for key in place[:-1]:
        inner = inner.setdefault(key, {"fraction": 0.1} if key == "holdout" else {})
    inner[place[-1]] = value
    return yaml.safe_dump(data)


def refusal(function, *arguments, **named):
    """What a call is refused with; None: it is not."""
    try:
        function(*arguments, **named)
    except RecipeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("place", [*fields()], ids=".".join)
def test_every_field_refuses_in_one_line_what_it_cannot_use(place):
    told = [refusal(parse_recipe, with_value(place, value), path="r.yaml") for value in WRONG]
    assert all(LINE.fullmatch(words) and len(words) < 700 for words in told if words)
    taken = [value for value, words in zip(WRONG, told, strict=True) if words is None]
    assert not any(value is wrong for value in taken for wrong in (*NEVER, "", 1))
    assert len(taken) <= len(WRONG) - 8


def examples():
    """Name of an entry -> settings that a shipped recipe has."""
    found = {}
    for name in recipes():
        recipe = load_recipe(name)
        entries = [op for view in recipe.views.values() for op in view.ops]
        entries += [mask.sampler for mask in recipe.masks.values()]
        entries += [target.task for target in recipe.targets.values()]
        entries += [recipe.method] if recipe.method else []
        for entry in entries:
            found.setdefault(entry.name, dict(entry.settings))
    return found


LIKELY = {"size": [32, 32], "ratio": 0.5, "file": "x", "p": 0.5}
TABLES = {
    "ops": OPS, "sound ops": SOUND_OPS, "samplers": SAMPLERS, "tasks": TASKS,
    "sound tasks": SOUND_TASKS, "text tasks": TEXT_TASKS,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TABLES, "methods"])
def test_every_setting_refuses_in_one_line_what_it_cannot_use(kind):
    known, tried = examples(), 0
    for name, made in (METHODS if kind == "methods" else TABLES[kind]).items():
        settings = keyword_settings(made)
        good = {key: value for key, value in known.get(name, {}).items() if key in settings}
        for key, (_, default) in settings.items():
            if default is ...:
                good.setdefault(key, LIKELY.get(key, 1))
        for key in settings:
            for value in NEVER if kind == "methods" else WRONG:
                entry = Entry(name, {**good, key: value}, "r.yaml:7")
                # methods are built of encoders: their settings alone are checked here
                words = refusal(bind if kind == "methods" else call, made, entry)
                assert words is None or LINE.fullmatch(words)
                assert words or not any(value is never for never in NEVER), (name, key, value)
                tried += 1
    assert tried


def test_a_range_without_ends_and_sides_beyond_any_picture_are_refused():
    for setting in ({"scale": []}, {"size": [8, 2**40]}, {"size": [70_000, 8]}):
        text = yaml.safe_dump({"RandomResizedCrop": {"size": [8, 8], **setting}})
        ((name, settings),) = yaml.safe_load(text).items()
        with pytest.raises(RecipeError, match=r"r.yaml:3: RandomResizedCrop: .* must be"):
            call(OPS[name], Entry(name, settings, "r.yaml:3"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.final_lr_ratio=2", "less than or equal to 1"),
        ("decode={size: 70000}", "less than or equal to 65535"),
        ("run={threads: 2000}", "less than or equal to 1024"),
        ("run={prefetch: 2000}", "less than or equal to 1024"),
        ("stream.labels=''", "at least 1 character"),
        ("train.warmup_lr=1.0e+39", "beyond numbers of 32 bits"),
        ("stream.mix={a: 1.0e-300}", "beyond numbers of 32 bits"),
        ("train.clip_norm=1.0e-40", "beyond numbers of 32 bits"),
    ],
)
def test_nonsense_that_would_be_found_late_or_never_is_found_at_once(override, told):
    with pytest.raises(RecipeError, match=rf"--set .*{told}"):
        parse_recipe(RECIPE, path="r.yaml", overrides=[override])


def test_a_rate_that_the_first_step_would_refuse_is_refused_when_the_encoder_is_built():
    view = ViewSpec("global", 1, "CHW", (3, 32, 32))
    for rate in (1.5, -0.1, 1):
        entry = Entry("vit_tiny", {"patch_size": 8, "depth": 1, "drop_path_rate": rate}, "r.yaml:9")
        with pytest.raises(RecipeError, match=r"r.yaml:9: vit_tiny: drop_path_rate = .*; correct"):
            build_encoder(entry, view)


def test_the_largest_seed_is_no_number_that_is_calculated_with():
    recipe = parse_recipe(RECIPE, path="r.yaml", overrides=[f"stream.seed={2**63 - 1}"])
    assert recipe.stream.seed == 2**63 - 1
