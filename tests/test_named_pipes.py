"""Where a file is wanted, a named pipe is one line at once; opening it would wait for ever."""

import os
import subprocess
import sys

import pytest

from sslpipe.errors import SslpipeError
from sslpipe.evaluate.feature_file import read_origin
from sslpipe.evaluate.zero_shot import read_templates
from sslpipe.modalities.audio.frame_labels import read_frame_labels
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.sentence_file import SentenceFile
from sslpipe.modalities.text.token_file import open_tokens
from sslpipe.modalities.text.trained import open_vocabulary
from sslpipe.process import regular_file
from sslpipe.recipe import load_recipe
from sslpipe.report.maps import read_map
from sslpipe.shards import PackSettings, open_manifest, pack, read_index
from sslpipe.shards.contents import index_of
from sslpipe.shards.labels_file import read_labels
from sslpipe.shards.read.store import open_store
from sslpipe.shards.side_files import read_objects
from sslpipe.train.checkpoint import read_checkpoint

from .conftest import RECIPE, ROOT

READERS = {
    "r.yaml": load_recipe,
    "manifest.json": open_manifest,
    "x.tar.idx": lambda path: read_index(path.with_suffix("")),
    "labels.csv": read_labels,
    "lines.jsonl": lambda path: [*read_objects(path, "line")],
    "templates.txt": read_templates,
    "features.safetensors": read_origin,
    "embedding.csv": lambda path: read_map(path, []),
    "x.tar.sent": lambda path: SentenceFile(path, None),
    "x.tar.tok": lambda path: open_tokens(path, None),
    "vocabulary.json": lambda path: open_vocabulary(str(path), "r.yaml:3"),
    "frames.npz": lambda path: read_frame_labels(str(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_named_pipe_is_no_file(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(SslpipeError, match=rf"{name}.*it is no regular file.*; ") as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.csv", "x.txt", "x.parquet", "x.jsonl.gz"])
def test_a_named_pipe_is_no_input_of_pack(tmp_path, name):
    os.mkfifo(tmp_path / name)
    settings = PackSettings(codec=TextCodec() if "jsonl" in name else ImageCodec())
    with pytest.raises(SslpipeError, match=rf"{name}.*it is no regular file") as caught:
        pack(tmp_path / name, tmp_path / "out", settings)
    assert "\n" not in str(caught.value)


def test_a_named_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(SslpipeError, match=r"last\.pt: is no file; "):
        read_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("end", [".tar", ".tar.idx"])
def test_a_named_pipe_is_no_part_of_a_set(packed, tmp_path, end):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = open_manifest(tmp_path)
    path = tmp_path / (manifest.shards[0].file.removesuffix(".tar") + end)
    path.unlink()
    os.mkfifo(path)
    store = open_store(manifest)
    with pytest.raises(SslpipeError, match=rf"{path.name}.*it is no regular file.*; "):
        store.open(0)
    store.close()
    if end == ".tar.idx":
        with pytest.raises(SslpipeError, match="it is no regular file"):
            index_of(manifest, manifest.shards[0])


def test_devices_are_refused_folders_and_what_is_missing_say_so_themselves(tmp_path):
    with pytest.raises(OSError, match="it is no regular file: '/dev/zero'"):
        regular_file("/dev/zero")
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "none")
    assert regular_file(tmp_path) == tmp_path


def test_what_a_shell_holds_open_is_read():
    words = "from sslpipe.recipe import load_recipe; print(load_recipe('/dev/stdin').stream.seed)"
    found = subprocess.run(
        [sys.executable, "-c", words], input=RECIPE.replace("seed: 0", "seed: 7"), cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "7\n"
