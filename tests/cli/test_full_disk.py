"""A full disk: one line, code 2, nothing half-written. Every file may have so many bytes."""

import pytest

from ..conftest import RECIPE, room, write_images
from .test_commands import TRAINABLE

TRAIN = ("train", "train.yaml", "--shards", "{set}", "--out", "run", "--device", "cpu",
         "--max-steps", "2")  # fmt: skip
NAMED = ("shared memory", "last.pt", "o.png", "o.jpg", "out", "x.tar.idx", "metrics.jsonl")
CASES = {  # words -> bytes that fit, files that there may be afterwards
    TRAIN: (60_000, {"run/recipe.yaml", "run/metrics.jsonl"}),
    ("show", "recipe.yaml", "--shards", "{set}", "--out", "o.png"): (500, set()),
    ("inspect", "{set}", "--sheet", "o.png"): (500, set()),
    ("inspect", "{set}", "--row", "0", "--out", "o.jpg"): (500, set()),
    ("pack", "photos", "out", "--workers", "1"): (500, set()),
    ("pack", "photos", "out", "--workers", "2", "--shard-samples", "3"): (3_000, set()),
    ("index", "x.tar", "--out", "out"): (100, set()),
    ("index", "x.tar", "--out", "out", "--export", "dali"): (340, {"out/x.tar.idx"}),
}


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words)[:30])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(run, packed, tmp_path, words):
    size, whole = CASES[words]
    write_images(tmp_path / "photos", 6)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    (tmp_path / "x.tar").write_bytes(min(packed.glob("*.tar")).read_bytes())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with room(size):
        _, err = run(*(word.format(set=packed) for word in words), code=2, cwd=tmp_path)
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: "), err
    assert "Traceback" not in err
    assert "File too large" in line
    assert any(name in line for name in NAMED), line
    assert any(words in line for words in ("room", "free space", "raise the limit")), line
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    left = {str(path.relative_to(tmp_path)) for path in left if ".pack" not in path.parts}
    assert {name for name in left if "events.out" not in name} <= whole, err


def test_ids_of_tokens_say_what_to_do_and_the_same_command_goes_on(run, tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "long.txt").write_text("ids of bytes " * 3_000)  # 78 kB of ids
    shards = tmp_path / "texts"
    run("pack", tmp_path / "books", shards, "--modality", "text", code=0)
    run("tokenizer", "train", shards, "--kind", "bytes", code=0)
    words = ("tokenizer", "count", shards, "--tokenizer", shards / "tokenizer.json", "--ids")
    with room(20_000):
        _, err = run(*words, code=2)
    line = err.strip().splitlines()[-1]
    assert "File too large; make room" in line
    assert "copy it again" not in line
    run(*words, code=0)
