"""tools/bench/image_text.py runs: from a tar of captioned photos to a row."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from sslpipe.shards import read_manifest

from ..conftest import load_tool


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 photos of two classes, some of them for testing; and the names of the classes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    with tarfile.open(folder / "captions.tar", "w") as tar:
        for number in range(20):
            picture = io.BytesIO()
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(picture, "JPEG")
            label, split = number % 2, "test" if number % 5 == 4 else "train"
            said = {"captions": ["one", "two"], "label": label, "split": split}
            for ext, data in (("jpg", picture.getvalue()), ("json", json.dumps(said).encode())):
                member = tarfile.TarInfo(f"{number:02d}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    names = {str(n): {"name": name} for n, name in enumerate(("Green Apple", "Pear"))}
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def test_it_trains_judges_and_prints_a_row(photos, tmp_path, monkeypatch, capsys):
    bench = load_tool("image_text")
    small = [
        "stream.batch_size=8", "train.lr_batch=8",
        "train.backbone={vit_tiny: {patch_size: 32, embed_dim: 16, depth: 1, num_heads: 2}}",
        "method.clip.text={dim: 16, depth: 1, heads: 2}",
    ]  # fmt: skip
    words = [photos / "captions.tar", photos / "classes.json", "--methods", "clip", "--epochs", 1]
    words += ["--out", tmp_path, *(word for each in small for word in ("--set", each))]
    monkeypatch.setattr(sys, "argv", ["image_text.py", *map(str, words)])
    bench.main()
    shards = {split: read_manifest(tmp_path / "shards" / split) for split in ("train", "test")}
    assert (shards["train"].samples, shards["test"].samples) == (16, 4)
    assert shards["test"].classes == ("Green Apple", "Pear")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| ")
    assert "clip: 2 steps, " in line
    assert "zero-shot top-1" in line
    assert "chance 0.500" in line
    bench.main()  # its result is kept
    assert capsys.readouterr().out.splitlines()[-1] == line
