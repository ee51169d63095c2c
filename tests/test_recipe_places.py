"""What is wrong with one setting is told with the place where the setting stands."""

import copy
import pickle

import pytest

import sslpipe
import sslpipe.stream
from sslpipe.errors import RecipeError
from sslpipe.evaluate.during_training import check_protocols
from sslpipe.evaluate.features import central
from sslpipe.modalities.text import MODALITY as TEXT
from sslpipe.recipe import Recipe, parse_recipe
from sslpipe.recipe.schema import StreamSection
from sslpipe.train.run import check_training, prepare_run
from sslpipe.watching import watch

RECIPE = """\
modality: image
stream:
  batch_size: 8
  seed: 0
views:
  global:
    count: 2
    ops: [RandomResizedCrop: {size: [32, 32]}]
method: {simclr: {projector: [16, 8]}}
train:
  backbone: {cifar_resnet: {width: 8}}
  optimizer: {sgd: {lr: 0.1}}
  epochs: 1
run: {workers: 0, threads: 2}
"""
PHOTOS = [{"__key__": "a", "jpg": b""}]
MARK = "# here"


def changed(old, new, **kwargs):
    """The recipe with other text, and where MARK is in it."""
    assert old in RECIPE
    text = RECIPE.replace(old, new, 1)
    line = next(n for n, found in enumerate(text.splitlines(), 1) if MARK in found)
    return parse_recipe(text, path="r.yaml", **kwargs), f"r.yaml:{line}"


def load(recipe, shards, **where):
    return sslpipe.load(recipe, shards=shards, device="cpu", **where)


def told(call, *args, **kwargs):
    with pytest.raises(RecipeError) as error:
        call(*args, **kwargs)
    return str(error.value)


SEED = "  seed: 0\n"


@pytest.mark.parametrize(
    ("old", "new", "shards", "message"),
    [
        ("batch_size: 8", "batch_size: 999999  # here", "packed", "stream.batch_size = 999999 is"),
        (SEED, "  lanes: 3  # here\n", "packed", "stream.lanes = 3 does not divide"),
        (SEED, "  mix: {a: 1, b: 2}  # here\n", "named", "stream.mix weighs a, b, but c was given"),
        (SEED, "  mix: {a: 1, b: 2}  # here\n", "packed", "stream.mix weighs several sets"),
        (SEED, "  order: sequential  # here\n", "named", "stream.order = 'sequential' with"),
        (SEED, "  remainder: drop  # here\n", "named", "stream.order = 'lanes' with stream.rem"),
        (SEED, "  labels: x.csv  # here\n", "photos", "stream.labels = 'x.csv' labels one"),
        (SEED, "  holdout: {fraction: 0.5}  # here\n", "photos", "stream.holdout keeps samples"),
        (SEED, "  remainder: pad  # here\n", "photos", "stream.on_bad = 'replace' with"),
        (SEED, "  on_bad: exclude  # here\n", "photos", "stream.on_bad = 'exclude' with"),
        (SEED, "  bucket: {window: 9}  # here\n", "packed", "stream.bucket sorts samples"),
        (SEED, "  rows:  # here\n    window: 9\n", "packed", "stream.rows packs documents"),
        ("modality: image", "modality: imgae  # here", "packed", "unknown modality 'imgae'"),
        ("count: 2", "modality: vidoe  # here", "packed", "unknown modality 'vidoe'"),
        ("run: {", "decode: {device: cuda}  # here\nrun: {", "packed", "decode.device = 'cuda': "),
        ("workers: 0,", "workers: 0,\n  executor: triton,  # here\n ", "packed", "run.executor = "),
        (
            "method:", "masks: {m: {patch_size: 7, sampler: random}}  # here\nmethod:", "packed",
            "masks.m.patch_size = 7 does not divide",
        ),
    ],
)  # fmt: skip
def test_what_does_not_suit_the_data_is_told_with_its_line(packed, old, new, shards, message):
    recipe, place = changed(old, new)
    given = {"packed": packed, "named": {"c": packed}, "photos": PHOTOS}[shards]
    assert told(load, recipe, given).startswith(f"{place}: {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 1", "epochs: 1\n  accumulate: 999  # here", "1 epochs of 5 batches are less"),
        ("epochs: 1", "epochs: 1\n  clip_norm: 1\n  clip: per_module  # here", "train.clip = "),
        ("epochs: 1", "epochs: 1\n  checkpoint_activations: true  # here", "train.checkpoint_act"),
        ("{cifar_resnet: {width: 8}}", "vit_hige  # here", "unknown backbone 'vit_hige'"),
    ],
)
def test_what_does_not_suit_the_model_is_told_with_its_line(packed, old, new, message):
    recipe, place = changed(old, new)
    with load(recipe, packed) as pipe:
        assert told(check_training, recipe, pipe.spec).startswith(f"{place}: {message}")


def test_what_this_machine_or_the_caller_lacks_is_told_with_its_line(packed):
    recipe, place = changed("epochs: 1", "epochs: 1\n  precision: fp16  # here")
    with load(recipe, packed) as pipe:
        said = told(prepare_run, pipe, None, recipe.train)
        assert said.startswith(f"{place}: train.precision = 'fp16' needs a CUDA device")
        other = parse_recipe(RECIPE).train.model_copy(update={"precision": "fp16"})
        assert told(prepare_run, pipe, None, other).startswith("r.yaml: train.precision")  # its own
        assert told(watch, pipe, batches_per_step=9).startswith("r.yaml:15: watch: ")  # of `run`
    recipe, place = changed("epochs: 1", "epochs: 1\n  monitor: {protocols: [knnn]}  # here")
    assert told(check_protocols, recipe).startswith(f"{place}: train.monitor.protocols: unknown")
    recipe, place = changed("batch_size: 8", "batch_size: 9  # here")
    said = told(load, recipe, packed, rank=0, world_size=2)
    assert said == (
        f"{place}: stream.batch_size = 9 is not divisible by the 2 ranks; choose a multiple of 2"
    )
    recipe, place = changed(SEED, "  order: sequential  # here\n")
    said = told(load, recipe, packed, rank=0, world_size=2)
    assert said.startswith(f"{place}: the last batch would be short, and 2 ranks would wait")


BLOCK = """
masks:
  m:
    view: global
    patch_size: {size}
    count: {count}
    sampler:
      {name}:
        {settings}
"""
HERE = MARK


@pytest.mark.parametrize(
    ("size", "count", "name", "settings", "message"),
    [
        (f"7  {HERE}", 1, "random", "ratio: 0.5", "masks.m.patch_size = 7 does not"),
        (f"[8, 8, 8]  {HERE}", 1, "random", "ratio: 0.5", "masks.m.patch_size = [8, 8, 8] has 3"),
        (f"4\n    receptive_field: 40  {HERE}", 1, "random", "ratio: 0.5", "masks.m.receptive_f"),
        (8, f"2  {HERE}", "multiblock", "part: targets\n        min_keep: 0", "masks.m.count = 2"),
        (4, 1, "simmim", f"ratio: 0.5\n        unit: 3  {HERE}", "masks.m: unit = 3 does not"),
        (4, 1, "simmim", f"ratio: 0.5\n        unit: x  {HERE}", "simmim.unit = 'x': "),
        (4, 1, "random", f"ratio: 2.0  {HERE}", "random: ratio = 2.0 must lie"),
        (4, 1, "random", f"ratio: 0.5\n        rate: 1  {HERE}", "random has no setting 'rate'"),
        (f"32  {HERE}", 1, "random", "ratio: 0.5", "masks.m hides 1 of 1 patches"),
    ],
)
def test_what_does_not_suit_a_grid_is_told_at_the_setting_that_is_wrong(
    packed, size, count, name, settings, message
):
    text = BLOCK.format(size=size, count=count, name=name, settings=settings)
    recipe, place = changed("method:", f"{text}method:")
    if message:
        assert told(load, recipe, packed).startswith(f"{place}: {message}")
    else:
        load(recipe, packed).close()


def test_two_groups_of_text_are_told_at_the_second():
    ops = "ops: [Tokens: {length: 8}]"
    text = f"modality: text\nstream: {{batch_size: 2}}\nviews:\n  a: {{{ops}}}\n  b: {{{ops}}}\n"
    said = told(TEXT.decider, parse_recipe(text, path="t.yaml"), ["a", "b"])
    assert said == "t.yaml:5: 2 groups of text; a recipe has one"


def test_what_set_gave_is_told_as_that(packed):
    recipe = parse_recipe(RECIPE, path="r.yaml", overrides=["stream.lanes=3", "run.workers=1"])
    assert told(load, recipe, packed).startswith("--set stream.lanes=3: stream.lanes = 3 does not")
    assert recipe.where("run", "workers") == "--set run.workers=1"
    assert recipe.where("run", "threads") == "r.yaml:14"
    whole = parse_recipe(RECIPE, path="r.yaml", overrides=["stream={batch_size: 8, lanes: 3}"])
    assert whole.where("stream", "lanes") == "--set stream={batch_size: 8, lanes: 3}"


def test_a_default_is_told_at_its_section_and_what_no_file_has_by_the_path():
    recipe = parse_recipe(RECIPE, path="r.yaml")
    assert recipe.where("stream", "batch_size") == "r.yaml:3"
    assert recipe.where("stream", "lanes") == recipe.where("stream") == "r.yaml:2"
    assert recipe.where("views", "global", "ops", 0, "RandomResizedCrop") == "r.yaml:8"
    assert recipe.where("decode", "device") == recipe.where() == "r.yaml"
    made = Recipe(path="mine", stream=StreamSection(batch_size=2, lanes=2), views={})
    assert made.where("stream", "lanes") == "mine"


def test_places_go_along_with_copies_and_say_nothing_about_a_recipe():
    recipe = parse_recipe(RECIPE, path="r.yaml", overrides=["run.threads=1"])
    copies = pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe), recipe.model_copy()
    for same in copies:
        assert same == recipe
        assert same.where("stream", "seed") == "r.yaml:4"
        assert same.where("run", "threads") == "--set run.threads=1"
    assert "_places" not in recipe.model_dump()
    lower = parse_recipe(f"# two\n# lines\n{RECIPE}", path="r.yaml")
    assert lower.where("stream", "seed") == "r.yaml:6"
    assert lower.fingerprint == recipe.fingerprint
    assert lower.stream == recipe.stream
    bare = "stream: {batch_size: 2}\nviews: {}"
    assert parse_recipe(bare, path="r.yaml") == parse_recipe(f"\n{bare}", path="r.yaml")


def test_what_a_copy_changes_is_not_told_with_the_line_of_another_value():
    recipe = parse_recipe(RECIPE, path="r.yaml")
    evaluated = central(recipe)
    assert evaluated.where("stream", "batch_size") == "r.yaml"
    assert evaluated.where("run", "threads") == "r.yaml:14"
    assert recipe.where("stream", "batch_size") == "r.yaml:3"
    again = recipe.model_copy(update={"stream": recipe.stream.model_copy()})
    assert again.where("stream", "batch_size") == "r.yaml:3"


def test_of_a_text_that_nobody_sees_settings_are_named_and_no_lines(packed):
    def opened(**stream):
        return told(sslpipe.stream.open, packed, **stream)

    place = "sslpipe.stream.open, stream.batch_size: stream.batch_size = "
    assert opened(batch_size=999_999).startswith(f"{place}999999 is more than")
    assert opened(batch_size="many").startswith(f"{place}'many': input should be")
    block = BLOCK.format(size=7, count=1, name="random", settings="ratio: 0.5")
    kept = RECIPE.replace("method:", f"{block}method:")
    recipe = parse_recipe(kept, path="last.pt (recipe)", seen=False)
    place = "last.pt (recipe), masks.m.patch_size: masks.m.patch_size = 7 does not"
    assert told(load, recipe, packed).startswith(place)
    other = parse_recipe(kept.replace("simclr", "simcrl"), path="last.pt (recipe)", seen=False)
    assert other.method.where == "last.pt (recipe), method.simcrl"
