"""What YAML makes of a recipe that is not what was meant: told by line, never taken as it is."""

import pytest

from sslpipe import load
from sslpipe.errors import RecipeError
from sslpipe.recipe import load_recipe, parse_recipe
from sslpipe.train.run import check_training

from .cli.test_commands import TRAINABLE

SEED, SIZE = "seed: 0", "batch_size: 8"
STREAM = "stream: {batch_size: 8, seed: 0}"
TRAPS = {  # what stands in a recipe, what stands there instead -> what is said
    ("  global:\n", "\tglobal:\n"): "y.yaml:4: has a tab, which YAML takes for no indentation",
    (SEED, "seed: 0, seed: 1"): "y.yaml:2: 'seed' stands twice; keep one",
    (STREAM, "stream:\n  <<: {batchsize: 8}\n  seed: 0"): "y.yaml:2: unknown key 'batchsize'; did",
    (STREAM, "stream:\n  <<: {a: 1}\n  <<: {b: 0}"): "y.yaml:4: '<<' stands twice; keep one",
    (STREAM, "stream:\n  <<: 3\n  seed: 0"): "y.yaml:3: expected a mapping or list of mappings",
    (SEED, "seed: *x"): "y.yaml:2: found undefined alias 'x'",
    (SEED, "seed: &x 0, window: &x 2"): "y.yaml:2: found duplicate anchor 'x'",
    (SEED, "3: 0"): "y.yaml:2: '3' is no name of a setting; quote it",
    (SEED, "[a, b]: 0"): "y.yaml:2: a list or mapping is no name of a setting",
    ("  global:\n", "  on:\n"): "y.yaml:4: 'on' is no name of a setting; quote it",
    (SEED, "seed: \x07"): "y.yaml:2: holds U.0007, which no YAML may; remove it",
    (SIZE, "batch_size: 010"): "y.yaml:2: 010 is 8 to YAML",
    (SIZE, "batch_size: 1:30"): "y.yaml:2: 1:30 is 90 to YAML",
    (SIZE, "batch_size: 1e3"): "stream.batch_size = '1e3': .* YAML reads it as a text: write",
    (SIZE, "batch_size: yes"): "y.yaml:2: stream.batch_size = True: is yes or no, where a number",
    (SEED, "seed: off"): "y.yaml:2: stream.seed = False: is yes or no, where a number",
    (SEED, "on_bad: no"): "stream.on_bad = False: .* YAML reads yes, no, on and off as true",
    (SEED, "labels: 2024-01-01"): "stream.labels = .* YAML reads it as a date: quote it",
    ("lr: 0.1", "lr: on"): "y.yaml:17: sgd.lr = True: holds yes or no, where a number is wanted",
    ("p: 0.8", "p: yes"): "y.yaml:9: ColorJitter.p = True: holds yes or no, where a number",
    ("[32, 32]", "[yes, 32]"): "RandomResizedCrop.size = .True, 32.: holds yes or no",
    ("      - Normalize", "      -"): "y.yaml:10: views.global.ops.3 = None: is no entry; write a",
}  # fmt: skip
WHOLE = {
    "": "y.yaml:1: is empty; a recipe is a mapping of sections",
    "- a\n- b\n": "y.yaml:1: is a list; a recipe is a mapping of sections",
    f"{TRAINABLE}---\n{TRAINABLE}": "y.yaml:19: begins another document .---., and a recipe is one",
}


def checked(text):
    """A recipe whose entries are bound too, as a run does it."""
    recipe = parse_recipe(text, path="y.yaml")
    with load(recipe, shards=[{"__key__": "a", "jpg": b""}], device="cpu") as pipe:
        check_training(recipe, pipe.spec)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap[1])
def test_what_yaml_reads_otherwise_is_told_by_its_line(trap):
    assert trap[0] in TRAINABLE
    with pytest.raises(RecipeError, match=TRAPS[trap]) as told:
        checked(TRAINABLE.replace(*trap))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", WHOLE, ids=["empty", "list", "two"])
def test_a_document_that_is_no_recipe_is_told_as_what_it_is(text):
    with pytest.raises(RecipeError, match=WHOLE[text]):
        parse_recipe(text, path="y.yaml")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + TRAINABLE.encode(),
        TRAINABLE.replace("\n", "\r\n").encode(),
        f"%YAML 1.2\n---\n{TRAINABLE}...\n".encode(),
        TRAINABLE.replace(STREAM, "stream:\n  <<: {batch_size: 8, seed: 3}\n  seed: 0").encode(),
        TRAINABLE.replace("batch_size: 8", "batch_size: 0_8.0").encode(),
    ],
    ids=["bom", "crlf", "directive", "merge", "underscore"],
)
def test_what_means_the_same_is_the_same_recipe(data, tmp_path):
    (tmp_path / "y.yaml").write_bytes(data)
    assert load_recipe(tmp_path / "y.yaml").fingerprint == parse_recipe(TRAINABLE).fingerprint


def test_overrides_fall_into_the_same_traps():
    for override, told in {
        "stream={batch_size: 8, batch_size: 9}": "--set .*'batch_size' stands twice",
        "stream.seed=yes": "--set stream.seed=yes: stream.seed = True: is yes or no",
        "stream.batch_size=010": "--set stream.batch_size=010:1: 010 is 8 to YAML",
        "stream.labels=a: b: c": "the value is not YAML; quote it",
    }.items():
        with pytest.raises(RecipeError, match=told):
            parse_recipe(TRAINABLE, overrides=[override])
