"""The README's commands, literally, in the folder that a reader would stand in."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from sslpipe.train.checkpoint import read_checkpoint

from ..conftest import ROOT, write_images
from ..modalities.audio.sounds import chirp, encoded
from ..modalities.video.films import film

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
LINES = [line for line in LINES if line]
ELSEWHERE = {  # beginning of a line that is not run here -> why
    "tools/demo": "makes .venv: a network and 5 GB; its steps are those below",
    "tools/test": "it runs this file",
    'sslpipe index "s3://': "needs a bucket; test_distant.py indexes one on loopback",
    "sslpipe train simclr ": "ResNet-50 at 224 px: for a GPU",
    "torchrun ": "needs 8 GPUs; test_world.py starts ranks",
}
STEPS = "2"  # of the demo's training, which takes minutes; its command goes on with --resume


def elsewhere(line):
    return next((why for start, why in ELSEWHERE.items() if line.startswith(start)), None)


HERE = [line for line in LINES if elsewhere(line) is None]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with files of all kinds, the sample shards and the recipes, as after a clone."""
    folder = tmp_path_factory.mktemp("reader")
    write_images(folder / "photos", 24)
    write_images(folder / "captioned", 64)
    for path in (folder / "captioned").rglob("*.jpg"):
        captions = [f"picture {path.stem}, a {path.parent.name}", f"a {path.parent.name}"]
        path.with_suffix(".json").write_text(json.dumps({"captions": captions}))
    made = {
        "books": ("txt", lambda n: b"a document of some words, " * (20 + n)),
        "digits": ("wav", lambda n: encoded(chirp(0.7, 8000, seed=n), 8000, "wav")),
        "clips": ("mp4", lambda n: film(40 + n % 3)),
    }
    for name, (ext, data) in made.items():
        (folder / name).mkdir()
        for number in range(64):
            (folder / name / f"{number}.{ext}").write_bytes(data(number))
    (folder / "shards").mkdir()
    (folder / "shards/sample").symlink_to(ROOT / "shards/sample")
    return folder


def run(line, folder, *more):
    """A line as the shell takes it, with `sslpipe` meaning this one."""
    words = [*shlex.split(line), *more]
    assert words[0] == "sslpipe", f"say in ELSEWHERE why this is not run: {line}"
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_line_is_run_or_named():
    assert len(LINES) > 12
    assert all(any(line.startswith(start) for line in LINES) for start in ELSEWHERE)
    commands = {line.split()[1] for line in HERE}
    assert {"pack", "verify", "inspect", "show", "bench", "train", "eval", "export"} <= commands


@pytest.mark.slow
def test_the_readme_s_commands_do_what_they_say(reader):
    """In their order, each in what the ones before it have left; training is cut to two steps."""
    for line in HERE:
        trains = line.startswith("sslpipe train ")
        done = run(line, reader, *(["--max-steps", STEPS] if trains else []))
        told = f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == 0, told
        assert "Traceback" not in done.stderr, told
        for made in re.findall(r"(?:--out|--sheet) (\S+)", line):
            assert (reader / made).exists(), told
    assert (reader / "shards/photos/manifest.json").exists()
    assert (reader / "runs/demo/last.pt").exists()


@pytest.mark.slow
def test_the_readme_s_training_runs_as_it_stands_and_goes_on_when_resumed(reader, tmp_path):
    """The literal line, stopped by Ctrl-C once it has logged; then `--resume`."""
    line = next(line for line in HERE if line.startswith("sslpipe train "))
    (tmp_path / "shards").symlink_to(reader / "shards")
    with subprocess.Popen(
        [sys.executable, "-m", *shlex.split(line)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as job:
        metrics = tmp_path / "runs/demo/metrics.jsonl"
        while job.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        _, err = job.communicate()
    assert job.returncode == 130, err
    assert "Traceback" not in err
    last = tmp_path / "runs/demo/last.pt"
    done = read_checkpoint(last).step
    again = run(line, tmp_path, "--resume", "--max-steps", str(done + 1))
    assert (again.returncode, read_checkpoint(last).step) == (0, done + 1), again.stderr
