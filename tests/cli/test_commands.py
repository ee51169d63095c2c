"""The command line as a user types it, with right and wrong input."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from sslpipe.export import formats
from sslpipe.shards import open_manifest, read_index
from sslpipe.shards.labels_file import read_labels
from sslpipe.train import Bar

from ..conftest import RECIPE, write_images

TRAINABLE = (
    RECIPE
    + """\
method: {simclr: {projector: [16, 8]}}
train:
  backbone: {cifar_resnet: {width: 8, blocks: [1, 1, 1, 1]}}
  optimizer: {sgd: {lr: 0.1}}
  epochs: 2
"""
)


def test_help_has_an_example_for_every_command(run):
    out, _ = run("--help")
    commands = ["pack", "index", "verify", "inspect", "show", "bench", "train", "eval", "export"]
    commands += ["pseudo-label", "recipes", "features", "frame-labels"]
    for command in commands:
        assert command in out
        assert "Example" in run(command, "--help")[0]


def test_from_a_folder_to_an_evaluated_encoder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ONNX_MODULES", ("not_there",))  # half a minute, tested elsewhere
    write_images(tmp_path / "photos", 24)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TRAINABLE)
    out, _ = run("pack", "photos", "shards", "--resize", 40, "--workers", 1, cwd=tmp_path)
    assert re.search("samples +│ +24 .*shards +│ +1 ", out, re.DOTALL)
    assert "all good" in run("verify", "shards", cwd=tmp_path)[0]
    out, _ = run("show", recipe, "--shards", "shards", "--out", "s.png", "--rows", 3, cwd=tmp_path)
    assert "global: 2 x 32 x 32: RandomResizedCrop, RandomHorizontalFlip" in out
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 3 * 96
    words = ("train", recipe, "--shards", "shards", "--out", "run", "--monitor", "shards")
    _, err = run(*words, "--max-steps", 2, cwd=tmp_path)
    assert "monitor: knn of 24 of 24 labelled samples of photos" in " ".join(err.split())
    _, err = run(*words, "--resume", cwd=tmp_path)
    assert "finished 6 steps" in err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert [row["step"] for row in rows if "eval/knn_top1" in row] == [0, 6]
    assert torch.load(tmp_path / "run/best.pt")["step"] == 6
    out, _ = run("eval", "run/last.pt", "shards", "--json", cwd=tmp_path)
    report = json.loads(out)
    assert set(report) == {"trained", "untrained", "pixels"}
    assert 0 <= report["trained"]["knn20 top-1"]["value"] <= 1
    assert report["trained"] != report["untrained"]
    _, err = run("export", "run", "out", "--format", "timm", code=2, cwd=tmp_path)
    assert "not as timm: no name and arguments of timm make this model" in err
    (tmp_path / "measures.json").write_text(out)
    words = ("--card-measures", "measures.json", "--license", "mit")
    out, err = run("export", "run/last.pt", "exported", *words, cwd=tmp_path)
    assert "wrote exported: the student, for weights alone" in out
    assert "not as onnx: not_there not installed" in err
    card = (tmp_path / "exported/README.md").read_text()
    assert "license: mit" in card
    assert f"| knn20 top-1 | {report['trained']['knn20 top-1']['value']:.4g} |" in card
    words = ("train", recipe, "--shards", "shards", "--out", "warm", "--max-steps", 1)
    _, err = run(*words, "--from", "exported", cwd=tmp_path)
    assert "starts from exported: " in err


def test_few_labels_become_many_beside_the_shards(run, tmp_path):
    """From a pack without labels and four written by hand to a run and a pack that have them."""
    write_images(tmp_path / "all", 24)
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "all").rglob("*.jpg"):  # without their classes
        path.rename(tmp_path / "photos" / f"{path.parent.name}-{path.name}")
    (tmp_path / "recipe.yaml").write_text(TRAINABLE)
    run("pack", "photos", "shards", "--workers", 1, cwd=tmp_path)
    words = ("train", "recipe.yaml", "--shards", "shards")
    run(*words, "--out", "run", "--max-steps", 1, cwd=tmp_path)
    label = ("pseudo-label", "run/last.pt", "shards", "--out", "labels.csv")
    assert "none of the 24 samples has a label" in run(*label, code=2, cwd=tmp_path)[1]
    mine = {f"class{i % 3}-{i:03d}": f"class{i % 3}" for i in range(6)}
    rows = "".join(f"{key},{name}\n" for key, name in mine.items())
    (tmp_path / "mine.csv").write_text("key,label\n" + rows)
    out, _ = run(*label, "--labels", "mine.csv", "--share", 1, cwd=tmp_path)
    assert "wrote labels.csv: 18 of 18 samples, labelled by 6 " in out
    found = {row.key: row for row in read_labels(tmp_path / "labels.csv").rows}
    assert len(found) == 24
    assert {key: found[key].label for key in mine} == mine
    assert all(0.3 < row.confidence <= 1 for row in found.values())

    run(*words, "--out", "labelled", "--labels", "labels.csv", "--max-steps", 1, cwd=tmp_path)
    err = run(*words, "--out", "labelled", "--resume", code=2, cwd=tmp_path)[1]
    assert "its shards or their weights was" in err
    run("pack", "photos", "taught", "--labels", "labels.csv", "--workers", 1, cwd=tmp_path)
    assert open_manifest(tmp_path / "taught").classes == ("class0", "class1", "class2")
    known = ("--known", "taught", "--share", 0.5)
    out, _ = run(*label[:-1], "again.csv", *known, cwd=tmp_path)
    assert "of 24 samples, labelled by 24 " in out


def test_evaluation_joins_classes_by_name(run, tmp_path):
    """The second set lacks the first class, so its numbers are all one less."""
    write_images(tmp_path / "all", 24)
    for part in (1, 2):
        shutil.copytree(tmp_path / f"all/class{part}", tmp_path / f"some/class{part}")
    shutil.copytree(tmp_path / "all/class0", tmp_path / "other/elsewhere")
    for name in ("all", "some", "other"):
        run("pack", name, f"{name}_shards", "--workers", 1, cwd=tmp_path)
    (tmp_path / "recipe.yaml").write_text(TRAINABLE)
    run("train", "recipe.yaml", "--shards", "all_shards", "--out", "run", cwd=tmp_path)
    words = ("eval", "run/last.pt", "all_shards", "--no-untrained", "--json", "--test")
    out, err = run(*words, "some_shards", cwd=tmp_path)
    assert "bank of 24; 16 queries" in json.loads(out)["trained"]["knn20 top-1"]["protocol"]
    assert "classes: only the training set has class0" in err
    _, err = run(*words, "some_shards", "--strict", code=2, cwd=tmp_path)
    assert "the classes differ: only the training set has class0" in err
    _, err = run(*words, "other_shards", code=2, cwd=tmp_path)
    assert "no class of the test set (elsewhere)" in err


def test_what_was_made_is_named_on_one_line_that_can_be_copied(run, tmp_path):
    """However long a path is, and with a line feed in it."""
    write_images(tmp_path / "photos", 2)
    out = f"{'long/' * 30}li\nne"
    words, _ = run("pack", "photos", out, cwd=tmp_path)
    assert f"wrote {'long/' * 30}li\\nne/manifest.json" in words.splitlines()
    words, _ = run("inspect", out, "--sheet", f"{out}.png", cwd=tmp_path)
    assert f"wrote {'long/' * 30}li\\nne.png: 2 of 2 samples" in words.splitlines()


def test_unreadable_files_are_listed_and_the_exit_code_says_so(run, tmp_path):
    write_images(tmp_path / "photos", 6)
    whole = (tmp_path / "photos/class0/000.jpg").read_bytes()
    (tmp_path / "photos/class0/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/class1/lie.png").write_bytes(b"not a picture")
    _, err = run("pack", tmp_path / "photos", tmp_path / "shards", code=1)
    assert "class0/cut.jpg" in err
    assert "class1/lie.png" in err
    assert open_manifest(tmp_path / "shards").samples == 6
    rows = [json.loads(r) for r in (tmp_path / "shards/report.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == {"class0/cut.jpg", "class1/lie.png"}


def test_packing_by_every_choice(run, tmp_path):
    write_images(tmp_path / "photos", 12)
    (tmp_path / "list.csv").write_text(
        "where,what\n" + "".join(f"photos/class{i % 3}/{i:03d}.jpg,{i % 2}\n" for i in range(12))
    )
    table = ("pack", "list.csv", "out", "--columns", "path=where,label=what", "--workers", 1)
    out, _ = run(*table, "--dry-run", "--shard-samples", 5, cwd=tmp_path)
    assert re.search("samples +│ +12 .*shards +│ +about 3 ", out, re.DOTALL)
    assert not (tmp_path / "out").exists()
    words = ("--resize", 32, "--dedupe", "near", "--near-bits", 0, "--keep-names", "--name", "p")
    run(*table, "--shard-samples", 5, *words, cwd=tmp_path)
    manifest = open_manifest(tmp_path / "out")
    assert (manifest.name, manifest.classes) == ("p", ("0", "1"))
    assert [shard.samples for shard in manifest.shards] == [5, 5, 2]
    _, err = run(*table, code=2, cwd=tmp_path)
    assert "already holds packed shards" in err
    run(*table, "--overwrite", "--check", "header", cwd=tmp_path)
    assert open_manifest(tmp_path / "out").name == "list"
    _, err = run("pack", "photos", "o", "--columns", "path=a,what=b", code=2, cwd=tmp_path)
    assert "write path=COLUMN,label=COLUMN,caption=COLUMN,key=COLUMN" in err


def test_verify_finds_a_flipped_bit(run, tmp_path):
    write_images(tmp_path / "photos", 6)
    run("pack", tmp_path / "photos", tmp_path / "shards")
    (tar,) = (tmp_path / "shards").glob("*.tar")
    data = np.fromfile(tar, dtype=np.uint8)
    data[1000] ^= 1
    data.tofile(tar)
    _, err = run("verify", tmp_path / "shards", code=1)
    assert "SHA-256 differs" in err


def test_bad_samples_can_be_left_out_and_sets_be_mixed_by_name(run, tmp_path):
    write_images(tmp_path / "photos", 6)
    run("pack", tmp_path / "photos", tmp_path / "shards")
    (tar,) = (tmp_path / "shards").glob("*.tar")
    data = np.fromfile(tar, dtype=np.uint8)
    data[int(read_index(tar).payloads["offset"][2]) + 9] ^= 1
    data.tofile(tar)
    out, _ = run("verify", tmp_path / "shards", "--exclude", code=1)
    assert "1 samples are excluded in" in out
    assert open_manifest(tmp_path / "shards").exclude == {tar.name: (2,)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    named = [f"--shards={name}={tmp_path / 'shards'}" for name in ("a", "b")]
    run("show", recipe, *named, "--rows", 2, "--out", tmp_path / "s.png")
    _, err = run("show", recipe, *named[:1], "--shards", "c", code=2)
    assert "several sets need a name each" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "simclrr", "--shards", "."), "did you mean 'simclr'"),
        (("show", "simclr", "--shards", "nowhere"), "no manifest"),
        (("show", "nowhere.yaml", "--shards", "."), "nowhere.yaml: cannot be read"),
        (("train", "simclr", "--shards", ".", "--set", "train.epoch=3"), "did you mean 'epochs'"),
        (("eval", "nowhere.pt", "."), "there is no such file, folder or model"),
        (("pack", "nowhere", "out"), "does not exist"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(run, words, message, tmp_path):
    _, err = run(*words, code=2, cwd=tmp_path)
    assert message in err
    assert "error:" in err


def test_numbers_out_of_range_are_named_by_their_option(run, tmp_path):
    for words in (
        ("show", "simclr", "--step=-1"),
        ("show", "simclr", f"--step={2**63}"),
        ("show", "simclr", "--rows=0"),
        ("bench", "simclr", "--seconds=0"),
        ("bench", "simclr", "--seconds=-2"),
        ("train", "simclr", "--max-steps=-3"),
        ("train", "simclr", "--max-steps=0"),
    ):
        _, err = run(*words, "--shards", "nowhere", code=2, cwd=tmp_path)
        assert f"Invalid value for '{words[2].partition('=')[0]}'" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "simclr", "--shards=x", "--out=o.xyz"), "o.xyz: '.xyz' is no format that pic"),
        (("show", "simclr", "--shards=x", "--out=o"), "o: '' is no format that pictures are"),
        (("show", "simclr", "--shards=x", "--out=a.mpg"), "a.mpg: '.mpg' is no format that pic"),
        (("show", "simclr", "--shards=x", "--out=no/o.png"), "no/o.png: there is no folder no; "),
        (("show", "simclr", "--shards=x", "--out=dir.png"), "dir.png: is a folder; name a file"),
        (("export", "last.pt", "no/vit"), "no/vit: there is no folder no; make it"),
        (("train", "simclr", "--shards=x", "--out=file/run"), "file/run: file is a file, not a"),
        (("show", "binary.yaml", "--shards=x"), "binary.yaml: is no text (byte 2 is not UTF-8);"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line_before_work_begins(run, words, message, tmp_path):
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "binary.yaml").write_bytes(b"a:\xff\x00\x89PNG")
    _, err = run(*words, code=2, cwd=tmp_path)
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [("train", "simclr", "--shards"), ("bench", "simclr", "--shards"), ("eval", "last.pt")]
)
def test_a_device_that_is_not_there_is_one_line(run, words, sample, tmp_path):
    out, err = run(*words, sample, "--device", "tpu", code=2, cwd=tmp_path)
    assert err.splitlines() == [
        "error: SslpipeError: device 'tpu': is no device of ours; choose cpu or cuda"
    ]
    assert not out


def test_a_method_that_the_batches_cannot_feed_is_refused_before_data_is_read(
    run, tmp_path, packed
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TRAINABLE.replace("count: 2", "count: 1"))
    _, err = run("train", recipe, "--shards", packed, "--out", tmp_path / "run", code=2)
    assert "simclr needs 2 'global' views; this recipe makes 1. Set views.global.count to 2" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_saves_and_says_so_by_its_exit_code(
    run, packed, tmp_path, monkeypatch, number, code
):
    """So that `sslpipe train && sslpipe eval` does not evaluate half a run."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TRAINABLE)
    monkeypatch.setattr(Bar, "step", lambda self, step: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    try:
        words = ("train", recipe, "--shards", packed, "--out", tmp_path / "run")
        _, err = run(*words, "--device", "cpu", code=code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped after step 1 of 10 and saved" in err
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 1


def test_bench_names_the_bottleneck(run, packed, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TRAINABLE)
    out, err = run("bench", recipe, "--shards", packed, "--seconds", 0.1, "--json")
    rates = json.loads(out)
    stages = {"read", "decode", "decide", "make", "augment", "pipeline", "step", "step_beside"}
    assert all(rates[name] >= rates["end_to_end"] > 0 for name in stages)
    assert rates["cpu_us"] > 0
    assert rates["bottleneck"] in rates["verdict"]
    assert re.match(r"memory: about [\d.,]+ [MG]B in all \(data \d+ MB, ", err)
    out, _ = run("bench", recipe, "--shards", packed, "--seconds", 0.1, "--data-only")
    assert "us per image" in out
    assert "bottleneck" in out
