"""The plan of tools/bench/text_learning.py: runs of so many steps, and what is measured of them."""

import json

import numpy as np
import pytest

from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import find_recipe, load_recipe, parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.shards import PackSettings, pack

from ..conftest import load_tool

SMALL = (
    "train.backbone={bert: {dim: 8, depth: 1, heads: 2}}",
    "views.tokens.ops=[{Tokens: {length: 32, vocabulary: bytes, begin: true}}]",
    "stream.batch_size=4",
)


@pytest.fixture(scope="module")
def bench():
    return load_tool("text_learning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """movie_reviews as the tool wants it: two classes of letters, keys as the authors'."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = [
        {"key": f"cv{n:03d}_{n % 7}{label}", "label": label,
         "text": "".join(rng.choice(list(("abc ", "xyz ")[label]), 60))}
        for label in (0, 1) for n in range(0, 1000, 50)
    ]  # fmt: skip
    file = folder / "movie_reviews.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    pack(file, folder / "movie_reviews", PackSettings(codec=TextCodec()))
    return folder


@pytest.mark.parametrize("steps", [101, 2000])
def test_a_run_is_one_epoch_of_so_many_steps(bench, steps):
    recipe = bench.of_steps(load_recipe(find_recipe("gpt_bytes")), steps)
    assert recipe.stream.epoch_samples == steps * recipe.stream.batch_size
    assert recipe.train.epochs == 1
    assert recipe.train.warmup_epochs * steps == pytest.approx(100)
    assert parse_recipe(recipe_text(recipe)).fingerprint == recipe.fingerprint


def test_every_task_names_a_recipe_and_holds_documents_out_where_tokens_are_guessed(bench):
    for name, task in bench.TASKS.items():
        recipe = load_recipe(find_recipe(task.recipe), overrides=list(task.sets))
        assert (recipe.stream.holdout is not None) == ("sentiment" not in name)


def test_folds_are_the_authors(bench):
    assert [bench.fold_of(key) for key in ("cv000_29416", "1/cv999_1", "0/cv450_x")] == [0, 9, 4]


def test_a_task_is_trained_and_probed_once(bench, data, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WARMUP", 3)
    monkeypatch.setattr(bench, "TIMED", 2)
    words = ["x", "sentiment", "--data", data, "--out", tmp_path, "--seconds", "0.01"]
    words += [word for setting in SMALL for word in ("--set", setting)]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    bench.main()
    found = json.loads((tmp_path / "sentiment" / "result.json").read_text())
    assert found["steps"] == 4  # the warm-up and one more, at least
    assert set(found["folds"]) == {"trained", "untrained", "counts"}
    assert found["folds"]["counts"] == [1.0] * 10  # their letters tell them apart
    before = (tmp_path / "sentiment" / "run" / "last.pt").stat().st_mtime_ns
    bench.main()
    assert (tmp_path / "sentiment" / "run" / "last.pt").stat().st_mtime_ns == before
