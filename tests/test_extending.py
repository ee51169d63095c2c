"""pipelines/EXTENDING.md is true: its examples run, and its mistakes say what stands there."""

import itertools
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sslpipe
from sslpipe.errors import SslpipeError
from sslpipe.recipe import load_recipe
from sslpipe.train.loop import train_recipe

from .conftest import ROOT

PAGE = (ROOT / "pipelines" / "EXTENDING.md").read_text()
PARTS = {part.split("\n")[0]: part for part in re.split(r"^## An? ", PAGE, flags=re.M)[1:]}
MISTAKE = re.compile(r"^- `(.+?)` → `(.+?)`: \*(.+)\*$", re.M)
MISTAKES = [
    pytest.param(part, *found, id=f"{part} {number}")
    for part, text in PARTS.items()
    for number, found in enumerate(MISTAKE.findall(text))
]
MOST_LINES = {"modality": 110}  # of a module, comments and blank lines too
MINE = re.compile(r"^(my_\w+|series)$")
BASE = {
    "stream": {"batch_size": 4, "seed": 0},
    "views": {"global": {"count": 2, "ops": [{"RandomResizedCrop": {"size": [32, 32]}}]}},
    "run": {"threads": 1, "prefetch": 0},
}
TRAINED = ("method", "encoder")


def block(part, language):
    """The one block of a part in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PARTS[part], re.S)
    return found


def module_of(part):
    """The name of its file, and what stands in it."""
    text = block(part, "python")
    return re.match(r"# (\w+)\.py\n", text)[1], text


def forget():
    """The modules of earlier examples."""
    for name in [name for name in sys.modules if MINE.match(name)]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch, sample):
    """A working directory from which modules are imported, with what the examples read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within a second
    Path("shards").mkdir()
    Path("shards/sample").symlink_to(sample)
    for name in PARTS:
        module, text = module_of(name)
        Path(f"{module}.py").write_text(text)
    forget()
    yield tmp_path
    forget()


def recipe(part):
    """`mine.yaml`: the recipe of a part, completed; of trained ones with what they need."""
    text = dict(BASE)
    for name in TRAINED if part in TRAINED else (part,):
        if "```yaml" in PARTS[name]:
            text |= yaml.safe_load(block(name, "yaml"))
    Path("mine.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    return load_recipe("mine.yaml")


def shards_of(part):
    """What the recipe of a part reads, made here if it is no photos."""
    if part == "source":
        import my_source

        with zipfile.ZipFile("photos.zip", "w") as archive:
            for number in range(8):
                Image.new("RGB", (40, 50), (30 * number, 0, 0)).save("photo.jpg")
                archive.write("photo.jpg", f"{number}.jpg")
        return my_source.Photos("photos.zip")
    if part == "tokenizer":
        import my_letters  # noqa: F401  it writes letters.json

        texts = ["some text, lower case.", "and another one", "the third"] * 4
        return packed("books", "text", {f"{i}.txt": text for i, text in enumerate(texts)})
    if part == "modality":
        walks = np.random.default_rng(0).normal(0, 0.3, (8, 50)).cumsum(1)
        files = {f"{i}.csv": "\n".join(map(str, walk)) for i, walk in enumerate(walks.tolist())}
        return packed("walks", "series:Series", files)
    return "shards/sample"


def packed(name, modality, files):
    """A set of these files, packed in this process."""
    from sslpipe.modalities.finding import find_modality
    from sslpipe.shards import PackSettings, open_threads, pack

    Path(name).mkdir(exist_ok=True)
    for file, text in files.items():
        Path(name, file).write_text(text)
    with open_threads(1) as pool:
        settings = PackSettings(codec=find_modality(modality, "--modality").codec)
        pack(name, f"shards/{name}", settings, pool=pool, overwrite=True)
    return f"shards/{name}"


def attempt(part):
    """Two batches of the recipe of a part, or two steps of training."""
    shards, made = shards_of(part), recipe(part)
    if part in TRAINED:
        return train_recipe(
            made, shards=shards, out=Path("run"), resume=False, max_steps=2, device="cpu"
        )
    with sslpipe.load(made, shards=shards, device="cpu") as pipe:
        batches = list(itertools.islice(pipe, 2))
        if part == "modality":
            draw(pipe)
    return batches


def draw(pipe):
    from sslpipe.modalities.sheets import draw_sheet

    share = pipe.load_share(0)
    batch = pipe.make_batch(share, 0)
    return draw_sheet(pipe.parts, batch, pipe.spec, share.columns, rows=4)


def test_op(folder):
    for batch in attempt("op"):
        on_VB = batch.params["global"][..., -2] > 0
        gone_VB = (batch.views["global"] == 0).all(-1).all(-1).any(2)
        assert torch.equal(on_VB, gone_VB)


def test_mask(folder):
    for batch in attempt("mask"):
        rows_MBR = batch.masks["rows"].unflatten(-1, (4, 4)).sum(-1)
        assert rows_MBR.flatten().unique().tolist() == [0, 4]
        assert (rows_MBR.sum(-1) == 4).all()


def test_task(folder):
    first, _ = attempt("task")
    with sslpipe.load(recipe("source"), shards="shards/sample", device="cpu") as pipe:
        plain = next(iter(pipe)).views["global"]
    turned = first.targets["mirrored"] == 1
    assert turned.any()
    assert torch.equal(first.views["global"][turned], plain[turned].flip(-1))
    assert torch.equal(first.views["global"][~turned], plain[~turned])


@pytest.mark.parametrize("part", TRAINED)
def test_what_is_trained(part, folder):
    result = attempt(part)
    assert result.steps == 2
    assert {"align", "uniform"} <= set(result.metrics)
    checkpoint = torch.load("run/last.pt", weights_only=True)
    assert any("layers.0.weight" in name for name in checkpoint["method"])


def test_source(folder):
    keys = [key for batch in attempt("source") for key in batch.keys]
    assert keys == [str(number) for number in range(8)]


def test_tokenizer(folder):
    for batch in attempt("tokenizer"):
        assert int(batch.views["tokens"].max()) < 5 + 35
        assert not (batch.views["tokens"] == 4).any()  # all of its signs are known


def test_modality(folder):
    for batch in attempt("modality"):
        for b, key in enumerate(batch.keys):
            walk_T = np.loadtxt(f"walks/{key}.csv", dtype=np.float32)
            for view in range(2):
                start = int(batch.params["global"][view, b, 0])
                window_T = batch.views["global"][view, b, 0].numpy()
                assert np.array_equal(window_T, walk_T[start : start + 32])


@pytest.mark.parametrize(("part", "right", "wrong", "said"), MISTAKES)
def test_mistakes_say_what_stands_there(part, right, wrong, said, folder):
    module, text = module_of(part)
    assert right in text
    Path(f"{module}.py").write_text(text.replace(right, wrong))
    with pytest.raises(SslpipeError) as caught:
        attempt(part)
    assert str(caught.value) == said


def test_commands_of_the_page(folder, run):
    """As they stand there; `train` for two steps."""
    shards_of("modality")
    forget()
    recipe("modality")
    Path("mine.yaml").rename("series.yaml")
    recipe("method")
    for line in re.findall(r"^sslpipe (.*?)(?: +#.*)?$", PAGE, re.M):
        command, *rest = line.split()
        extra = {"train": ["--max-steps", "2"], "bench": ["--seconds", "0.1"]}.get(command, [])
        device = ["--device", "cpu"] if command in ("train", "bench") else []
        run(command, *rest, *device, *extra, *(["--overwrite"] if command == "pack" else []))
    assert Path("views.png").exists()


def test_every_part_has_mistakes_and_a_short_module():
    assert len(PARTS) == 8
    for part in PARTS:
        assert MISTAKE.search(PARTS[part])
        lines = [line for line in module_of(part)[1].splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES.get(part, 25), part
