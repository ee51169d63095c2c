"""Wrong input of every kind: one line that names what was typed and says what to do."""

import os
import re

import numpy as np
import pytest

from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, open_manifest, pack, read_index
from sslpipe.shards.make.journal import Journal

from ..conftest import RECIPE, write_images
from .test_commands import TRAINABLE

AWAY = "http://127.0.0.1:9"  # discard: nobody listens
SHOW = ("show", "{recipe}", "--shards", "{set}", "--out", "o.png")
SHOW_TRAIN = ("show", "{train}", *SHOW[2:], "--set")
TRAIN = ("train", "{train}", "--shards", "{set}", "--out", "run")
BENCH = ("bench", "{train}", "--shards", "{set}", "--device", "cpu")
PACK = ("pack", "photos", "out")
INDEX = ("index", "x.tar", "--out", "out")
INSPECT = ("inspect", "{set}")

RANGES = [  # a command, an option, values that it refuses
    (PACK, "--resize", ("0", "-1", "x", "1.5")),
    (PACK, "--quality", ("0", "101", "x")),
    (PACK, "--shard-mb", ("0", "-1", "nan", "inf", "x")),
    (PACK, "--shard-samples", ("0", "-3", "x")),
    (PACK, "--seed", ("-1", str(2**64), "x")),
    (PACK, "--near-bits", ("-1", "16", "64", "x")),
    (PACK, "--workers", ("0", "-2", "x")),
    (PACK, "--fps", ("0", "-1", "nan", "inf", "x")),
    (PACK, "--check", ("all", "")),
    (PACK, "--dedupe", ("some", "")),
    (INDEX, "--threads", ("0", "-1", "x")),
    (INSPECT, "--row", ("-1", "x")),
    (INSPECT, "--count", ("0", "-1", "x")),
    (SHOW, "--rows", ("0", "-1", "x")),
    (SHOW, "--step", ("-1", str(2**40), "x")),
    (BENCH, "--seconds", ("0", "-1", "nan", "inf", "x")),
    (TRAIN, "--max-steps", ("0", "-1", "x")),
]
OPTIONS = [
    pytest.param((*words, f"{option}={value}"), option, id=f"{words[0]} {option}={value}")
    for words, option, values in RANGES
    for value in values
]
SETS = {  # an override -> what the answer names
    "stream.batch_size=0": "stream.batch_size = 0: ",
    "stream.batch_size=x": "stream.batch_size = 'x': ",
    "stream.batchsize=8": "did you mean 'batch_size'",
    "stream.seed=-1": "stream.seed = -1: ",
    "stream.order=any": "stream.order = 'any': ",
    "stream.remainder=none": "stream.remainder = 'none': ",
    "stream.on_bad=ignore": "stream.on_bad = 'ignore': ",
    "stream.window=0": "stream.window = 0: ",
    "stream.max_bad_fraction=2": "stream.max_bad_fraction = 2: ",
    "stream.allow_repeats=maybe": "stream.allow_repeats = 'maybe': ",
    "decode={size: 0}": "decode.size = 0: ",
    "decode={scaled: 1}": "decode.scaled = 1: ",
    "run.threads=0": "run.threads",
    "run.executor=gpu": "run.executor = 'gpu': ",
    "run.prefetch=-1": "run.prefetch = -1: ",
    "views.global.count=0": "views.global.count = 0: ",
    "views.global.count=100000000": "views.global.count = 100000000: ",
    "masks.random.view=local": "masks.random.view = 'local' is no view group",
    "masks.random.sampler=rand": "'rand'",
    "masks.random.patch_size=0": "masks.random.patch_size = 0: ",
    "method=simclrr": "did you mean 'simclr'",
    "method={simclr: {temprature: 1}}": "did you mean 'temperature'",
    "train.backbone=resnet19": "'resnet19'",
    "train.backbone={resnet18: {steam: cifar}}": "did you mean 'stem'",
    "train.epochs=0": "train.epochs = 0: ",
    "train.precision=fp8": "train.precision = 'fp8': ",
    "stream.seed=99999999999999999999": "stream.seed = 99999999999999999999: ",
    "stream.epoch_samples=99999999999999999999": "stream.epoch_samples = 99999999999999999999: ",
    "stream.holdout={frac: 0.1}": "did you mean 'fraction'",
    "stream.holdout.fraction=0.1": "write the section: 'stream.holdout={fraction: 0.1}'",
    "views={}": "views = {}: ",
    "views.global.ops=[]": "views.global.ops = []: ",
    "views.global.ops=Normalize": "views.global.ops = 'Normalize': ",
    "run.workers=100000": "run.workers = 100000: ",
    "train.final_lr=.nan": "train.final_lr = nan: ",
    "trian.epochs=1": "the recipe has no 'trian.epochs'; check the path",
}
OF_SHOW = ("stream.batch_size", "stream.allow_repeats")
WHAT_TO_DO = r"; |: (write|use|name) |: several sets need a name each"
LINES = {  # what is typed -> what the answer holds
    ("pack", "nowhere", "out"): "nowhere: does not exist; check the path",
    ("pack", "photos", "file"): "file: file is a file, not a folder; name another folder",
    ("pack", "photos", "file/out"): "file/out: file is a file, not a folder",
    ("pack", "photos", "photos"): "photos: is the folder to pack; name another one",
    ("pack", "photos", "s3://a/b"): "s3://a/b: is a URL; pack into a folder",
    ("pack", "loop", "out"): "loop: ",
    ("pack", "photos", "loop"): "loop: is a link that leads nowhere; name a new folder",
    ("index", "loop"): "loop: no such tar; check the path",
    ("inspect", "loop"): "Too many levels of symbolic links",
    ("pack", "empty", "out"): "holds nothing to pack",
    ("pack", "file", "out"): "file: is no folder and none of .txt",
    ("pack", "none*.tar", "out"): "none*.tar: matches nothing; check the pattern",
    ("pack", "x.tar.gz", "out"): "x.tar.gz: is compressed",
    ("pack", "a{0..1", "out"): "a{0..1: ",
    ("pack", "deep.jsonl", "out", "--modality", "text"): "is nested too deeply",
    ("pack", "where.csv", "out"): "--columns path=NAME",
    ("pack", "broken.zip", "out"): "broken.zip: no zip, or a damaged one",
    ("pack", "x.tar", "out"): "x.tar: no plain tar",
    ("pack", "list.txt", "out"): "none of its first 1 entries exists, e.g. 'nowhere.jpg'",
    ("pack", f"{AWAY}/x.tar", "out"): f"{AWAY}/x.tar: cannot be read (Connect",
    ("pack", f"{AWAY}/x.csv", "out"): f"{AWAY}/x.csv: cannot be read (Connect",
    ("pack", "foo://a/b.tar", "out"): "foo://a/b.tar: Protocol not known: foo",
    (*PACK, "--columns", "paths=a"): "--columns 'paths=a': write path=COLUMN",
    (*PACK, "--name", "a/b"): "name 'a/b': use letters",
    (*PACK, "--name", "a" * 201): "use at most 200 bytes",
    (*PACK, "--modality", "imag"): "--modality",
    ("index", "nowhere"): "nowhere: no such tar; check the path",
    ("index", "nowhere/*.tar"): "nowhere/*.tar: no such tar; check the path",
    ("index", "x.tar.gz"): "x.tar.gz: is compressed",
    ("index", "a{0..1"): "a{0..1: unbalanced braces",
    ("index", "x.tar", "x.tar"): "x.tar: is named 2 times; name each tar once",
    ("index", "x.tar", "--out", "file"): "file: file is a file, not a folder",
    ("index", "x.tar", "--export", "ffcv"): "choose from dali, wids, energon",
    ("index", "x.tar", "--name", "a/b"): "name 'a/b': use letters",
    ("index", "x.tar", "--out", "out"): "x.tar: no plain tar",
    ("index", f"{AWAY}/x.tar"): "name a folder for indexes and manifest with --out",
    ("index", f"{AWAY}/x.tar?s=a*[b]", "--out", "out"): "cannot be read (Connect",
    ("index", f"{AWAY}/*.tar", "--out", "out"): f"{AWAY}/*.tar: ",
    ("verify", "nowhere"): "nowhere/manifest.json: no manifest",
    ("verify", "file"): "file",
    ("verify", "{set}", "--exclude-log", "nowhere.jsonl"): "'--exclude-log'",
    ("verify", "{set}", "--exclude-log", "where.csv"): "where.csv:1: is no line of a quarantine",
    ("verify", "x.tar"): "x.tar: is not JSON",
    (*SHOW_TRAIN, "path=x"): "--set path=x: unknown key 'path'; ",
    ("inspect", "nowhere"): "nowhere/manifest.json: no manifest",
    (*INSPECT, "nokey"): "has no sample 'nokey'",
    (*INSPECT, "--row", "999"): "row 999 does not exist; it has rows 0 to 44",
    (*INSPECT, "--out", "o"): "--out writes one sample: name it by its key or --row",
    (*INSPECT, "--row", "0", "--out", "no/o"): "no/o: there is no folder no; make it",
    (*INSPECT, "--row", "0", "--out", "empty"): "empty: is a folder; name a file in it",
    (*INSPECT, "--sheet", "o.xyz"): "o.xyz: '.xyz' is no format that pictures",
    (*INSPECT, "--sheet", "no/o.png"): "no/o.png: there is no folder no; make it",
    ("show", "simclrr", "--shards", "{set}"): "did you mean 'simclr'",
    ("show", "file.yaml", "--shards", "{set}"): "file.yaml: cannot be read",
    ("show", "short.yaml", "--shards", "{set}"): ".size = [32]: has 1 of 2 values",
    ("show", "{recipe}", "--shards", "nowhere"): "nowhere/manifest.json: no manifest",
    ("show", "{recipe}", "--shards", "a=x", "--shards", "b"): "need a name each",
    (*SHOW_TRAIN, "train.optimizer={sgdd: {lr: 1}}"): "did you mean 'sgd'",
    (*SHOW_TRAIN, "train.optimizer={sgd: {lrr: 1}}"): "sgd has no setting 'lrr'; did you mean 'lr'",
    (
        *SHOW_TRAIN,
        "train.optimizer={sgd: {lr: .inf}}",
    ): "--set train.optimizer={sgd: {lr: .inf}}: sgd",
    (
        *SHOW_TRAIN,
        "train.backbone={gpt: {dim: 30, heads: 4}}",
    ): "dim = 30 is no multiple of heads = 4",
    (*SHOW_TRAIN, "train.backbone={gpt: {depth: 0}}"): "gpt.depth = 0: is below 1",
    (*SHOW_TRAIN, "views.global.count=1"): "simclr needs 2 'global' views; this recipe makes 1",
    (*SHOW_TRAIN, "train.backbone={resnet18: {stemm: cifar}}"): "no setting 'stemm'",
    (*SHOW_TRAIN, "train.monitor={protocols: [knnn]}"): "did you mean 'knn'",
    (*TRAIN, "--set", "train.monitor={protocols: [liner]}"): "did you mean 'linear'",
    (*TRAIN, "--set", "train.monitor={every_epochs: 0}"): "train.monitor.every_epochs = 0: ",
    (*TRAIN, "--monitor", "nowhere"): "nowhere/manifest.json: no manifest",
    (*TRAIN, "--monitor-test", "nowhere"): "nowhere/manifest.json: no manifest",
    ("bench", "{train}", "--shards", "nowhere"): "nowhere/manifest.json: no manifest",
    (*BENCH[:4], "--device", "tpu"): "device 'tpu': is no device of ours",
    (*BENCH, "--set", "stream.batch_size=64"): "set it to 45 or less, or stream.allow_repeats",
    (*BENCH, "--set", "stream.batch_size=100000"): "stream.batch_size = 100000 is more than",
    (*TRAIN, "--set", "stream.batch_size=46"): "set it to 45 or less, or stream.allow_repeats",
    (*TRAIN, "--resume"): "run/last.pt: there is no checkpoint",
    (*TRAIN[:4], "--out", "file"): "file: file is a file, not a folder",
    ("eval", "nowhere.pt", "{set}"): "nowhere.pt: there is no such file, folder or model",
    ("eval", "file", "{set}"): "file: damaged",
    ("eval", "resnet18x", "{set}"): "resnet18x: there is no such file, folder or model",
    ("eval", "x", "{set}", "--protocols", "knm"): "--protocols knm: no 'knm'; did you mean 'knn'",
    ("eval", "x", "{set}", "--report", "file"): "file: file is a file, not a folder",
    ("eval", "x", "{set}", "--device", "tpu"): "device 'tpu': is no device of ours",
    ("features", "x", "{set}", "--out", "no/f"): "no/f: there is no folder no; make it",
    ("features", "x", "{set}", "--out", "empty"): "empty: is a folder; name a file in it",
    ("features", "nowhere.pt", "{set}", "--out", "f"): "nowhere.pt: there is no such file, folder",
    ("pack", "photos", ""): "photos '': an argument is empty",
    ("show", "{recipe}", "--shards", ""): "--shards '': an argument is empty",
    ("tokenizer", "train", "{set}", "--kind", "bpe", "--size", "300"): "holds image, not text",
    ("export", "nowhere.pt", "o"): "nowhere.pt: there is no checkpoint",
    ("export", "photos", "o"): "photos/last.pt: there is no checkpoint",
    ("export", "file", "o"): "file: damaged",
    ("export", "file", "no/o"): "no/o: there is no folder no; make it",
    ("export", "file", "photos"): "photos: is a folder with other things in it; name another",
    ("export", "file", "list.txt"): "list.txt: is a file; an export is a folder, name one",
    ("export", "x", "o", "--card-measures", "file"): "file: holds no measures of a 'trained' enc",
    ("export", "x", "o", "--card-measures", "none"): "none: cannot be read (No such file or dir",
    (*TRAIN, "--from", "nowhere.pt"): "nowhere.pt: there are no weights; name a checkpoint",
    (*TRAIN, "--from", "photos"): "photos: holds neither last.pt nor model.safetensors; name",
    (*TRAIN, "--from", "file"): "file: is no file of torch's, or holds more than",
    (*TRAIN, "--from", "timm:vit_tinny"): "timm:vit_tinny: timm",
    (
        "pack",
        "photos",
        "o",
        "--quality",
        "50",
    ): "--quality 50: is of pictures that are encoded anew; add --resize",
    (
        "pack",
        "photos",
        "o",
        "--near-bits",
        "0",
    ): "--near-bits 0: is of samples that look alike; add --dedupe near",
    (
        *("pack", "photos", "o", "--dedupe", "exact", "--near-bits", "2"),
    ): "--near-bits 2: is of samples that look alike; add --dedupe",
    ("inspect", "{set}", "--keys", "--sheet", "s.png"): "--keys and --sheet each ask for something",
    ("inspect", "{set}", "a", "--row", "0"): "KEY and --row each ask for something else; give one",
    ("pack",): "Missing argument",
    ("pack", "photos", "out", "--resise", "3"): "--resise",
    ("shw",): "shw",
}


@pytest.fixture
def typed(run, packed, tmp_path):
    """Run words in a folder with all kinds of wrong things; give what it says on stderr."""
    write_images(tmp_path / "photos", 3)
    for name in ("empty", "file", "x.tar", "x.tar.gz", "broken.zip"):
        (tmp_path / name).mkdir() if name == "empty" else (tmp_path / name).write_bytes(b"no")
    (tmp_path / "where.csv").write_text("where\nphotos/class0/000.jpg\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "list.txt").write_text("nowhere.jpg\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    (tmp_path / "short.yaml").write_text(RECIPE.replace("[32, 32]", "[32]"))
    places = {"set": packed, "recipe": "recipe.yaml", "train": "train.yaml"}

    def typed(words):
        known = [word.format(**places) if word[1:-1] in places else word for word in words]
        out, err = run(*known, code=2, cwd=tmp_path)
        assert "Traceback" not in out + err
        return err

    return typed


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_a_number_out_of_range_is_told_by_its_option(typed, words, option, tmp_path):
    assert f"Invalid value for '{option}'" in typed(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", SETS)
@pytest.mark.parametrize("words", [SHOW, BENCH], ids=["show", "bench"])
def test_a_setting_that_is_wrong_is_told_by_its_name(typed, words, setting):
    if words is SHOW and setting.startswith(OF_SHOW):
        setting = "stream.window=0"  # those two are show's own: --rows, and no harm in repeats
    words = ("show", "{train}", *words[2:]) if words is SHOW else words
    err = typed((*words, "--set", setting))
    assert SETS[setting] in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_what_is_wrong_is_one_line(typed, words):
    err = typed(words)
    assert LINES[words] in err
    if err.startswith("error: "):
        assert len(err.splitlines()) == 1
        assert re.search(WHAT_TO_DO, err)


def test_a_folder_that_cannot_be_written_is_told_before_work_begins(typed, monkeypatch):
    monkeypatch.setattr(
        os, "access", lambda path, mode: not mode & os.W_OK
    )  # as for a user who is not root
    for words in (PACK, (*INDEX[:3], "out"), SHOW, TRAIN, ("export", "file", "o")):
        assert "cannot be written; mend its rights, or write elsewhere" in typed(words)


def test_a_full_disk_is_one_line(typed, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sslpipe.shards.make.journal.replace_file", full)
    assert "No space left on device; make room" in typed(PACK)


def test_another_recipe_on_resume_is_told_by_the_settings_that_differ(run, typed, packed, tmp_path):
    words = ("train", "train.yaml", "--shards", packed, "--out", "run", "--device", "cpu")
    run(*words, "--max-steps", 1, cwd=tmp_path)
    err = typed((*map(str, words), "--resume", "--set", "stream.batch_size=4"))
    assert "(stream.batch_size: 8 there, 4 now); resume with the recipe of the run" in err


def test_ctrl_c_while_packing_says_that_the_same_command_goes_on(run, tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 6)
    words = ("pack", "photos", "out", "--workers", 1, "--shard-samples", 2)

    def stop(self, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", stop)
        _, err = run(*words, code=130, cwd=tmp_path)
    assert err == "stopped; the same command goes on where it stopped\n"
    run(*words, cwd=tmp_path)
    assert open_manifest(tmp_path / "out").samples == 6


def test_what_was_skipped_is_said_to_be_listed(run, tmp_path):
    write_images(tmp_path / "photos", 3)
    (tmp_path / "photos/notes.doc").touch()
    _, err = run("pack", "photos", "out", "--workers", 1, cwd=tmp_path)
    assert "1 skipped: all listed, with the reason, in out/report.jsonl" in err


def test_faults_of_excluded_samples_are_told_as_such(run, tmp_path):
    write_images(tmp_path / "photos", 6)
    pack(tmp_path / "photos", tmp_path / "set", PackSettings(codec=ImageCodec()))
    (tar,) = (tmp_path / "set").glob("*.tar")
    data = np.fromfile(tar, dtype=np.uint8)
    data[int(read_index(tar).payloads["offset"][2]) + 9] ^= 1
    data.tofile(tar)
    run("verify", tmp_path / "set", "--exclude", code=1)
    out, err = run("verify", tmp_path / "set")
    assert "6 samples in 1 shards: all others are good" in out
    assert [line.partition(":")[0] for line in err.splitlines()[-2:]] == ["excluded", "excluded"]
    data[int(read_index(tar).payloads["offset"][4]) + 9] ^= 1
    data.tofile(tar)
    run("verify", tmp_path / "set", code=1)


def test_a_field_of_140_kb_is_a_caption(run, tmp_path):
    write_images(tmp_path / "photos", 3)
    (tmp_path / "t.csv").write_text(f"path,caption\nphotos/class0/000.jpg,{'x' * 140_000}\n")
    run("pack", "t.csv", "out", "--workers", 1, cwd=tmp_path)
    assert open_manifest(tmp_path / "out").samples == 1
