"""Kinds of faults that users meet before, around and behind the work: each is one line or none."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from sslpipe import __main__, load
from sslpipe.cli.terminal import one_line, width_of
from sslpipe.errors import RecipeError, StateError
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest
from sslpipe.shards.side_files import held, written_whole
from sslpipe.train.log import hold_folder
from sslpipe.train.record import open_sinks

from ..conftest import RECIPE, ROOT, write_images
from .test_commands import TRAINABLE

CAPTIONED = RECIPE.replace(
    "masks:",
    "  text: {modality: text, ops: [Captions: {length: 8, field: captions}]}\nmasks:",
)


def test_a_set_without_captions_is_refused_before_a_sample_is_read(packed, captioned):
    recipe = parse_recipe(CAPTIONED, path="c.yaml")
    with pytest.raises(RecipeError, match=r"views.text needs a member .json .* no sample of"):
        load(recipe, shards=packed, device="cpu")
    with load(recipe, shards=captioned, device="cpu") as pipe:
        assert len(next(iter(pipe)).views["text"][0]) == 8


@pytest.mark.parametrize(
    "error",
    [RuntimeError("unexpected pos 64 vs 0"), ValueError("I/O error: no space (os error 28)")],
    ids=["torch", "safetensors"],
)
def test_a_full_disk_is_one_whatever_a_library_makes_of_it(tmp_path, error):
    def write(part):
        part.write_bytes(b"half")
        try:
            raise OSError(errno.ENOSPC, "full") if isinstance(error, RuntimeError) else error
        except OSError:
            raise error  # noqa: B904 - as torch does

    (tmp_path / "last.pt").write_bytes(b"old")
    with (
        pytest.raises(OSError, match="No space left") as told,
        written_whole(tmp_path / "last.pt") as p,
    ):
        write(p)
    assert told.value.filename == str(tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == b"old"
    assert "last.pt: No space left on device; check" in one_line(told.value)


def test_faults_of_the_program_stay_traces_and_short_memory_does_not():
    assert one_line(RuntimeError("a bug")) is None
    assert one_line(ValueError("no (os error 2)")) is None
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory. More")):
        assert one_line(error).startswith("memory: ")
        assert one_line(error).endswith("; make batches, views or the model smaller")
    enforced = RuntimeError(
        "[enforce fail at a.cpp:1] err == 0. A: can't allocate memory: 9 bytes."
    )
    assert "A: can't allocate memory: 9 bytes" in one_line(enforced)
    loading = one_line(ImportError("libtorch.so: failed to map segment from shared object"))
    assert loading.startswith("memory: libtorch.so: failed to map")
    assert "ulimit" in loading
    assert one_line(ImportError("cannot import name 'x'")) is None


def test_a_run_s_folder_is_checked_before_the_model_is_made(run, packed, tmp_path, monkeypatch):
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "last.pt").write_bytes(b"")
    monkeypatch.setattr("sslpipe.train.loop.load", None)  # would be a trace
    words = ("train", "train.yaml", "--shards", packed, "--device", "cpu", "--out")
    assert "old/last.pt: holds a run already" in run(*words, "old", code=2, cwd=tmp_path)[1]
    assert "new/last.pt: there is no" in run(*words, "new", "--resume", code=2, cwd=tmp_path)[1]


def test_a_resume_of_another_recipe_is_refused_before_the_model_is_made(
    run, packed, tmp_path, monkeypatch
):
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    words = ("train", "train.yaml", "--shards", packed, "--device", "cpu", "--out", "run")
    run(*words, "--max-steps", 1, cwd=tmp_path)
    monkeypatch.setattr("sslpipe.train.loop.load", None)  # would be a trace
    other = (*words, "--resume", "--set", "stream.seed=9")
    assert "(stream.seed: 0 there, 9 now)" in run(*other, code=2, cwd=tmp_path)[1]
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    assert "last.pt: damaged" in run(*words, "--resume", code=2, cwd=tmp_path)[1]


def test_a_run_that_began_meanwhile_in_the_same_folder_is_kept(tmp_path):
    """Two runs looked and found the folder free; the first is done when the second writes."""
    (tmp_path / "last.pt").write_bytes(b"first")
    with pytest.raises(StateError, match=r"last\.pt: holds a run already"), ExitStack() as stack:
        open_sinks(None, tmp_path, 0, stack)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_less_than_one_step_is_told_by_show_and_before_the_model_is_made(
    run, packed, tmp_path, monkeypatch
):
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    monkeypatch.setattr("sslpipe.train.loop.initial_method", None)  # would be a trace
    for command in ("show", "train"):
        words = (command, "train.yaml", "--shards", packed, "--set", "train.accumulate=9999")
        err = run(*words, code=2, cwd=tmp_path)[1]
        assert err.startswith("error: RecipeError: ")
        assert "--set train.accumulate=9999: 2 epochs" in err
        assert "are less than one step of 9999; lower train.accumulate" in err


def test_lanes_are_checked_against_the_recipe_s_batch_not_the_rows_shown(run, packed, tmp_path):
    (tmp_path / "train.yaml").write_text(TRAINABLE)  # batches of 8
    words = ("show", "train.yaml", "--shards", packed, "--rows", 3, "--set")
    run(*words, "stream.lanes=4", cwd=tmp_path)
    err = run(*words, "stream.lanes=3", code=2, cwd=tmp_path)[1]
    assert "--set stream.lanes=3: stream.lanes = 3 does not divide stream.batch_size = 8" in err


@pytest.mark.parametrize(
    ("tty", "columns", "width"),
    [
        (True, "", None), (True, "100", None), (True, "0", 80), (True, "20", 80),
        (False, "", 200), (False, "100", None), (False, "0", 80), (False, "wide", 200),
    ],
)  # fmt: skip
def test_tables_have_room_whatever_columns_says(tty, columns, width):
    class Stream(io.StringIO):
        def isatty(self):
            return tty

    assert width_of(Stream(), columns) == width
    assert width_of(None, "") == 200  # closed


def test_a_pipe_gets_whole_tables_and_no_columns_no_empty_ones(packed):
    for columns in ("", "0"):
        environ = {**os.environ, "COLUMNS": columns}
        words = [sys.executable, "-m", "sslpipe", "inspect", str(packed)]
        done = subprocess.run(words, env=environ, capture_output=True, check=True, text=True)
        assert "class2" in done.stdout
        assert "…" not in done.stdout


def test_a_current_folder_that_was_removed_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    script = f"mkdir {gone}; cd {gone}; rmdir {gone}; {sys.executable} -m sslpipe verify set"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the current folder was removed; go to another one (cd)" in done.stderr


def test_where_even_the_error_cannot_be_written_the_exit_code_tells():
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "sslpipe", "verify", "nowhere"]
        assert subprocess.run(words, stderr=full, cwd=ROOT, check=False).returncode == 2


def test_a_terminal_that_knows_ascii_alone_takes_every_table(packed):
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "sslpipe", "inspect", str(packed)]
    done = subprocess.run(words, env=environ, capture_output=True, check=True)
    assert b"class2" in done.stdout
    assert done.stdout.isascii()
    assert b"#####" in done.stdout


def test_ctrl_c_while_modules_are_imported_leaves_no_trace(monkeypatch):
    class Slow(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "sslpipe.cli", Slow("cli"))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with ExitStack() as first:
        hold_folder(tmp_path, first)
        with pytest.raises(StateError, match="another process trains in this folder now"):
            hold_folder(tmp_path, ExitStack())
    with ExitStack() as second:
        hold_folder(tmp_path, second)
    assert not [*tmp_path.iterdir()]


def test_a_library_s_weights_are_not_fetched_in_vain(run, texts, packed, tmp_path):
    """An attempt to fetch them would end in another line, or in weights that do not fit."""
    name = "timm:vit_tiny_patch16_224.augreg_in21k"
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    for words in (("features", name, texts, "--out", "f"), ("eval", name, texts)):
        _, err = run(*words, code=2, cwd=tmp_path)
        assert f"{name}: is a model of pictures, and {texts} holds text; name a run on text" in err
    for recipe, shards in (("gpt_bytes", texts), ("train.yaml", packed)):
        words = ("train", recipe, "--shards", shards, "--out", "run", "--device", "cpu")
        _, err = run(*words, "--from", name, code=2, cwd=tmp_path)
        assert f"StateError: {name}: lacks " in err
        assert "set train.backbone to what it was trained with" in err


def test_outputs_do_not_fall_upon_sets_and_inputs(run, packed, tmp_path):
    shards = shutil.copytree(packed, tmp_path / "set")
    write_images(tmp_path / "photos", 3)
    (tmp_path / "train.yaml").write_text(TRAINABLE)
    before = {path: path.read_bytes() for path in shards.iterdir()}
    tar = min(shards.glob("*.tar")).name
    part = "is a part of a packed set; name another file"
    for words, told in {
        ("inspect", "set", "--row", "0", "--out", "set/manifest.json"): part,
        ("features", "run", "set", "--out", f"set/{tar}"): part,
        ("pseudo-label", "run", "set", "--out", f"set/{tar}.idx"): part,
        (
            "train",
            "train.yaml",
            "--shards",
            "set",
            "--out",
            "set",
        ): "set: holds packed shards",
        ("pack", "photos", "photos/class0"): "photos/class0: is one of the folders to pack; name a",
    }.items():
        assert told in run(*words, code=2, cwd=tmp_path)[1]
    assert {path: path.read_bytes() for path in shards.iterdir()} == before
    run("pack", "photos", "photos/out", "--workers", 1, cwd=tmp_path)
    assert open_manifest(tmp_path / "photos/out").samples == 3


def test_two_commands_do_not_write_one_thing_at_once(run, texts, tmp_path):
    write_images(tmp_path / "photos", 3)
    shards = shutil.copytree(texts, tmp_path / "texts")
    run("tokenizer", "train", shards, "--kind", "bytes")
    (tmp_path / "out").mkdir()
    count = ("tokenizer", "count", shards, "--ids", "--workers", 1)
    with held(tmp_path / "out", "packs"), held(shards, "counts"):
        _, err = run("pack", "photos", "out", "--workers", 1, code=2, cwd=tmp_path)
        assert "StateError: out: another process packs in this folder now; wait for its end" in err
        assert "another process counts tokens in this folder now" in run(*count, code=2)[1]
    with written_whole(tmp_path / "o.png") as part:
        part.write_bytes(b"the other's")
        words = ("inspect", tmp_path / "out", "--sheet", "o.png")
        run("pack", "photos", "out", "--workers", 1, cwd=tmp_path)
        _, err = run(*words, code=2, cwd=tmp_path)
        assert "o.png: another process writes it now; wait for its end" in err
    assert (tmp_path / "o.png").read_bytes() == b"the other's"
    run(*count)


def test_ctrl_c_while_a_finished_process_tidies_up_prints_no_trace(tmp_path):
    """A signal in atexit, after the command, ends the process as it would end any other."""
    words = """
import atexit, os, signal, sys
from sslpipe import __main__

sys.argv = ["sslpipe", "--version"]
atexit.register(lambda: os.kill(os.getpid(), int(os.environ["NUMBER"])))
__main__.main()
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        done = subprocess.run(
            [sys.executable, "-c", words],
            env={**os.environ, "NUMBER": str(int(number)), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert (done.returncode, done.stderr) == (-number, "")
        assert done.stdout.startswith("sslpipe ")


def test_an_error_has_one_remedy():
    error = BlockingIOError(11, "another process writes it now; wait for its end", "o.png")
    assert one_line(error) == "o.png: another process writes it now; wait for its end"


def test_what_may_not_be_read_is_not_called_damaged_and_never_left_out_silently(
    run, packed, texts, tmp_path, monkeypatch
):
    from sslpipe.shards.make.inputs import folders

    def refused(path, *rest, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "r").mkdir()
    (tmp_path / "r/last.pt").touch()
    with monkeypatch.context() as patch:
        patch.setattr("sslpipe.train.checkpoint.check_crcs", refused)
        _, err = run("export", "r", "out", code=2, cwd=tmp_path)
    assert "r/last.pt: cannot be read (Permission denied); mend its rights" in err
    write_images(tmp_path / "photos", 6)
    scan = folders.scan
    with monkeypatch.context() as patch:  # as for a user who is not root
        patch.setattr(
            folders, "scan", lambda path: refused(path) if path.endswith("class1") else scan(path)
        )
        words = ("pack", "photos", "set", "--workers", 1)
        _, err = run(*words, code=1, cwd=tmp_path)
    assert "failed: class1: cannot be listed: Permission denied" in err
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        words = ("tokenizer", "train", texts, "--kind", "bytes", "--overwrite")
        assert "cannot be written; mend its rights" in run(*words, code=2)[1]
