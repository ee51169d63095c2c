"""What many tests share: small packed data sets, made once."""

import gc
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

# Here tensors are tiny, and a second thread waits more than it works: where the cores are shared
# with others, ten times as long. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from sslpipe.cli import commands
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack

ROOT = Path(__file__).parents[1]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # if it was imported before this file

RECIPE = """\
modality: image
stream: {batch_size: 8, seed: 0}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {size: [32, 32], scale: [0.2, 1.0]}
      - RandomHorizontalFlip
      - ColorJitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, p: 0.8}
      - Normalize
masks:
  random: {view: global, patch_size: 8, sampler: random}
run: {threads: 2, prefetch: 2}
"""


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected lives until the end: garbage is looked for only in what tests make.

    Half a million objects of torch and of 8,000 tests take a third of a second to go through.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a terminal: a shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def load_tool(name: str):
    """A script of tools/bench/ as a module; its neighbours are importable while it is loaded."""
    tools = str(ROOT / "tools" / "bench")
    sys.path.insert(0, tools)
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "bench" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(tools)


@contextmanager
def room(size):
    """No file may grow above `size` bytes; writing fails as on a full disk, by an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_images(folder: Path, count: int, *, classes: int = 3) -> None:
    """`count` smooth random JPEGs of different sizes in class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        width, height = (int(side) for side in rng.integers(40, 70, 2))
        path = folder / f"class{i % classes}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((width, height)).save(path, quality=90)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """45 images in 3 classes, about 5 shards."""
    folder = tmp_path_factory.mktemp("images")
    out = tmp_path_factory.mktemp("shards") / "packed"
    write_images(folder, 45)
    pack(folder, out, PackSettings(codec=ImageCodec(), shard_bytes=30_000))
    return out


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """80 documents of 1 to 600 bytes of words."""
    folder = tmp_path_factory.mktemp("documents")
    out = tmp_path_factory.mktemp("shards") / "texts"
    rng = np.random.default_rng(0)
    words = ["a", "row", "holds", "many", "small", "documents,", "é", "and\n", "none", "leaks."]
    for number in range(80):
        size = 1 + int(rng.exponential(150)) % 600
        text = " ".join(rng.choice(words, 1 + size // 5))[:size]
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    pack(folder, out, PackSettings(codec=TextCodec(), shard_bytes=20_000))
    return out


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """30 images in 3 classes; image i has 1 + i % 4 captions in its .json, and one in its .txt."""
    folder = tmp_path_factory.mktemp("captioned")
    out = tmp_path_factory.mktemp("shards") / "captioned"
    write_images(folder, 30)
    for number, path in enumerate(sorted(folder.rglob("*.jpg"), key=lambda p: p.stem)):
        name = path.parent.name
        captions = [f"Caption {k} of  {path.stem}, a {name}\n" for k in range(1 + number % 4)]
        path.with_suffix(".json").write_text(json.dumps({"captions": captions}))
        path.with_suffix(".txt").write_text(f"the text of {path.stem}")
    pack(folder, out, PackSettings(codec=ImageCodec(), shard_bytes=30_000))
    return out


@pytest.fixture
def run(monkeypatch, capfd):
    """Run `sslpipe WORDS` in this process, check the exit code, return (stdout, stderr)."""
    output = Console(width=400, markup=False, emoji=False)
    notes = Console(width=400, stderr=True, markup=False, emoji=False)
    for name in [name for name in sys.modules if name.startswith("sslpipe.cli.")]:
        monkeypatch.setattr(f"{name}.console", output, raising=False)
        monkeypatch.setattr(f"{name}.notes", notes, raising=False)

    def run(*words, code=0, cwd="."):
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["sslpipe", *map(str, words)])
            with pytest.raises(SystemExit) as exit_:
                commands.main()
        out, err = capfd.readouterr()
        assert exit_.value.code == code, err
        return out, err

    return run


def dry_rows(folder: Path, part: str) -> list[dict]:
    """Run one part of the measurements for a GPU here, at tiny sizes; the rows that it wrote."""
    command = [sys.executable, ROOT / "tools" / "bench" / "gpu_parts.py", folder, "--dry"]
    done = subprocess.run([*command, "--parts", part], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module of a user's; it can be imported until the test ends, and is forgotten then."""
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def recipe():
    """Two views and a mask at 32 px, batches of 8."""
    return parse_recipe(RECIPE, path="test.yaml")


@pytest.fixture(scope="session")
def sample():
    """The photos that ship with the repository."""
    return ROOT / "shards" / "sample"
