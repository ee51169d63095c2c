"""Recipes: strict, located, fingerprinted."""

import pytest

from sslpipe.errors import RecipeError
from sslpipe.recipe import load_recipe, parse_recipe
from sslpipe.recipe.names import Entry, bind, call, choose
from sslpipe.recipe.sections import recipe_text

from .conftest import RECIPE

TEXT = """\
modality: image
stream: {batch_size: 256, seed: 0}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {size: [224, 224]}
      - RandomHorizontalFlip: {p: 0.5}
      - Normalize
masks:
  random: {view: global, patch_size: 16, sampler: {random: {ratio: 0.75}}}
method: {simclr: {temperature: 0.1}}
train: {backbone: resnet50, optimizer: {lars: {lr: 0.3}}, epochs: 100}
run: {threads: auto, prefetch: 2}
"""


def parse(old="", new="", **kwargs):
    assert old in TEXT
    return parse_recipe(TEXT.replace(old, new, 1), path="r.yaml", **kwargs)


def test_a_recipe_is_frozen_data_with_places():
    recipe = parse()
    assert recipe.stream.batch_size == 256
    crop, flip, normalize = recipe.views["global"].ops
    assert crop == Entry("RandomResizedCrop", {"size": [224, 224]}, "r.yaml:7")
    assert (flip.where, normalize) == ("r.yaml:8", Entry("Normalize", {}, "r.yaml:9"))
    assert recipe.method == Entry("simclr", {"temperature": 0.1}, "r.yaml:12")
    with pytest.raises(ValueError, match="frozen"):
        recipe.stream.batch_size = 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "batchsize", "r.yaml:2: unknown key 'batchsize'; did you mean 'batch_size'"),
        ("method:", "methd:", "r.yaml:12: unknown key 'methd'; did you mean 'method'"),
        ("count: 2", "count: two", "r.yaml:5: views.global.count = 'two'"),
        ("count: 2", "count: 0", "r.yaml:5: views.global.count = 0: .*greater than 0"),
        ("optimizer: {lars: {lr: 0.3}}, ", "", "r.yaml:13: train.optimizer is missing"),
        ("seed: 0", "seed: 0, seed: 1", "r.yaml:2: 'seed' stands twice"),
        ("seed: 0}", "seed: 0", "r.yaml:3: .*; correct the YAML"),
        ("- Normalize", "- [1, 2]", r"r.yaml:9: views.global.ops.2 = \[1, 2\]: is no entry"),
        ("view: global", "view: globl", "r.yaml:11: .*'globl' is no view group; did you mean"),
        ("threads: auto", "threads: 0", "r.yaml:14: run.threads"),
    ],
)
def test_mistakes_are_named_with_file_and_line(old, new, message):
    with pytest.raises(RecipeError, match=message):
        parse(old, new)


@pytest.mark.parametrize("text", ["", "- a\n", "!!python/object/apply:os.system ['true']\n"])
def test_what_is_no_recipe_is_refused_and_never_executed(text):
    with pytest.raises(RecipeError):
        parse_recipe(text)


def test_a_missing_file_is_named():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: cannot be read"):
        load_recipe("nowhere.yaml")


def test_monitors_are_not_under_the_fingerprint():
    """Checkpoints of before there were any go on: these are the prints of that time."""
    prints = {
        "demo": "b2:b18fc37683f5e76b3248c5c1b1a07951",
        "simclr_cifar": "b2:f2cdf2019f996730d5ac112b025e1486",
    }
    for name, print_ in prints.items():
        assert load_recipe(name).fingerprint == print_
        watched = load_recipe(name, overrides=["train.monitor={every_epochs: 3}"])
        assert watched.train.monitor.every_epochs == 3
        assert (watched.fingerprint, watched.train.monitor.samples) == (print_, 10_000)
        again = parse_recipe(recipe_text(watched))
        assert again.train.monitor == watched.train.monitor


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.monitor={every_epochs: 0}", "monitor.every_epochs = 0: .* greater than 0"),
        (
            "train.monitor={every_epoch: 5}",
            "unknown key 'every_epoch'; did you mean 'every_epochs'",
        ),
        ("train.monitor={protocols: []}", r"monitor.protocols = \[\]: .* at least 1"),
        ("train.monitor=often", "train.monitor = 'often': "),
    ],
)
def test_wrong_monitors_are_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", overrides=[override])


def test_fingerprints_cover_what_changes_results_and_nothing_else():
    base = parse()
    assert parse("threads: auto", "threads: 3").fingerprint == base.fingerprint
    assert parse("modality", "# a comment\nmodality").fingerprint == base.fingerprint
    for old, new in (
        ("seed: 0", "seed: 1"),
        ("p: 0.5", "p: 0.4"),
        ("epochs: 100", "epochs: 99"),
        ("lr: 0.3", "lr: 0.4"),
        ("temperature: 0.1", "temperature: 0.2"),
    ):
        assert parse(old, new).fingerprint != base.fingerprint
    assert parse("lr: 0.3", "lr: 0.4").data_fingerprint == base.data_fingerprint
    assert parse("p: 0.5", "p: 0.4").data_fingerprint != base.data_fingerprint


def test_overrides_reach_any_depth_and_are_checked():
    recipe = parse(
        overrides=[
            "stream.batch_size=64",
            "views.global.ops.1.RandomHorizontalFlip.p=[0.1, 0.9]",
            "train.backbone={resnet18: {stem: cifar}}",
        ]
    )
    assert recipe.stream.batch_size == 64
    assert recipe.views["global"].ops[1].settings == {"p": [0.1, 0.9]}
    assert recipe.train.backbone.name == "resnet18"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.batch_size", "write key=value"),
        ("strem.batch_size=3", "the recipe has no 'strem.batch_size'"),
        ("stream.batchsize=3", "--set stream.batchsize=3: unknown key 'batchsize'; did you mean"),
        ("stream.batch_size=x", "--set stream.batch_size=x: stream.batch_size = 'x'"),
        ("stream.batch_size=[", "not YAML"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(RecipeError, match=message):
        parse(overrides=[override])


class Thing:
    """Something with settings."""

    def __init__(self, first, *, size: tuple[int, int], p: float = 0.5):
        if p > 1:
            raise ValueError(f"p = {p} must be at most 1")
        self.first, self.size, self.p = first, size, p


def test_settings_bind_strictly():
    made = call(Thing, Entry("thing", {"size": [1, 2], "p": "1e-3"}, "r.yaml:3"), "x")
    assert (made.first, made.size, made.p) == ("x", (1, 2), 0.001)
    for settings, message in (
        ({"size": [1, 2], "q": 1}, "r.yaml:3: thing has no setting 'q'; Known: p, size"),
        ({"sise": [1, 2]}, "r.yaml:3: thing has no setting 'sise'; did you mean 'size'"),
        ({}, "r.yaml:3: thing needs the setting 'size'"),
        ({"size": "big"}, "r.yaml:3: thing.size = 'big'"),
        ({"size": [1, 2], "p": 2}, "r.yaml:3: thing: p = 2.0 must be at most 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            call(Thing, Entry("thing", settings, "r.yaml:3"), "x")
    assert bind(Thing, Entry("thing", {"size": (3, 4)})) == {"size": (3, 4), "p": 0.5}


def test_names_are_chosen_or_imported():
    assert choose(Entry("a"), {"a": 1}, "thing") == 1
    assert choose(Entry("collections:Counter"), {}, "thing").__name__ == "Counter"
    with pytest.raises(RecipeError, match="unknown thing 'bb'; did you mean 'b'"):
        choose(Entry("bb"), {"a": 1, "b": 2}, "thing")
    with pytest.raises(RecipeError, match=r"cannot import 'no\.such:Thing'"):
        choose(Entry("no.such:Thing"), {}, "thing")


def test_a_shipped_recipe_is_loaded_by_name_and_overridden():
    recipe = load_recipe("simclr", overrides=["stream.batch_size=64"])
    assert recipe.stream.batch_size == 64
    assert recipe.path.endswith("simclr.yaml")
    with pytest.raises(RecipeError, match="no such file and no such recipe"):
        load_recipe("simclrr")


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stream: {batch_size: 2001-99-99}", "r.yaml: is no YAML (month must be in 1..12)"),
        ("stream: {seed: !!int x}", "r.yaml: is no YAML ("),
        ("stream: " + "[" * 50_000, "r.yaml: is no YAML (it is nested too deeply)"),
        ("stream: &a [*a]", "r.yaml: is no YAML (it is nested too deeply)"),
        (BOMB, "has more than 100,000 entries; write fewer aliases"),
        ("stream: {1: 2}", "r.yaml:1: '1' is no name of a setting; quote it"),
        ("stream:\n  yes: 2", "r.yaml:2: 'yes' is no name of a setting; quote it"),
        ("stream: {[a]: 2}", "r.yaml:1: a list or mapping is no name of a setting"),
        ("method: {simclr: {1: 2}}", "r.yaml:1: '1' is no name of a setting; quote it"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_yields_no_recipe_is_one_line(text, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, path="r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["stream.seed=2001-99-99", "stream.seed=" + "[" * 50_000, "stream.²=3", "stream.seed=&a [*a]",
     "views." + "9" * 5000 + "=1", "3=4", "=3", "stream..seed=1"],
    ids=lambda value: value[:16],
)  # fmt: skip
def test_an_override_that_is_none_is_one_line(override):
    with pytest.raises(RecipeError) as caught:
        load_recipe("simclr", overrides=[override])
    assert "\n" not in str(caught.value)


def test_merge_keys_of_yaml_still_work():
    text = "stream: {batch_size: 8}\nviews:\n  a: &a {count: 1, ops: [Normalize]}\n  b: {<<: *a}"
    assert parse_recipe(text).views["b"].count == 1


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("[2, 0, 8]", r"masks.random.patch_size.1 = 0: input should be greater than 0"),
        ("[]", r"masks.random.patch_size = \[\]: .*at least 1 item"),
        ("0", r"masks.random.patch_size = 0: input should be greater than 0"),
        ("x", r"masks.random.patch_size = 'x': input should be a valid integer"),
    ],
)
def test_a_value_of_several_types_is_told_as_the_one_that_it_is(patch, said):
    with pytest.raises(RecipeError, match=said):
        parse_recipe(RECIPE, overrides=[f"masks.random.patch_size={patch}"])


def test_a_section_is_no_number():
    with pytest.raises(RecipeError, match=r"stream = 3: is a section; write its keys"):
        parse_recipe(RECIPE, overrides=["stream=3"])
