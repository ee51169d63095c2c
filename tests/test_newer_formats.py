"""Files of a newer sslpipe: told as such, each kind of file that we write, never as damaged."""

import json
import shutil
import struct
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sslpipe import load
from sslpipe.errors import SslpipeError
from sslpipe.evaluate.feature_file import read_features
from sslpipe.modalities.audio.frame_labels import FrameGrid, read_frame_labels
from sslpipe.modalities.text.sentence_file import SentenceFile, write_sentences
from sslpipe.modalities.text.token_file import TokenFileOf, open_tokens, token_writer
from sslpipe.modalities.text.trained import open_vocabulary
from sslpipe.modalities.text.training import single_bytes
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest, read_index
from sslpipe.train.checkpoint import read_checkpoint
from sslpipe.train.warm_start import read_weights

from .conftest import RECIPE

OF = TokenFileOf("b2:" + "00" * 16, "00" * 32)


def with_version(path, at, *, kind="<H"):
    """Write version 9 into the header of a binary file."""
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, at, 9)
    path.write_bytes(data)


def manifest(folder, packed):
    shutil.copytree(packed, folder / "set")
    path = folder / "set/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    open_manifest(folder / "set")


def index(folder, packed):
    shutil.copytree(packed, folder / "set")
    tar = min((folder / "set").glob("*.tar"))
    with_version(tar.with_name(f"{tar.name}.idx"), 8)
    read_index(tar)


def tokens(folder, packed):
    with token_writer(folder / "x.tar.tok", OF, documents=1, width=2) as writer:
        writer.add(0, "key", np.arange(3, dtype=np.int32))
    with_version(folder / "x.tar.tok", 8)
    open_tokens(folder / "x.tar.tok", OF)


def sentences(folder, packed):
    write_sentences(folder / "x.tar.sent", OF, [np.array([3], dtype=np.int64)])
    with_version(folder / "x.tar.sent", 8)
    SentenceFile(folder / "x.tar.sent", OF)


def features(folder, packed):
    said = {"sslpipe": json.dumps({"format": 9, "origin": {"new": 1}})}
    save_file({"a": torch.zeros(1)}, folder / "f.safetensors", metadata=said)
    read_features(folder / "f.safetensors")


def frame_labels(folder, packed):
    said = json.dumps({**asdict(FrameGrid(16_000, 320, 400, 8, "")), "new": 1, "format": 9})
    np.savez(folder / "l.npz", uids=0, ends=0, labels=0, grid=np.array(said))
    read_frame_labels(str(folder / "l.npz"))


def checkpoint(folder, packed):
    torch.save({"format": 9, "all": "new"}, folder / "last.pt")
    read_checkpoint(folder / "last.pt")


def weights(folder, packed):
    torch.save({"format": 9, "all": "new"}, folder / "last.pt")
    read_weights(folder)


def tokenizer(folder, packed):
    made = json.loads(single_bytes([], 260).to_str())
    (folder / "t.json").write_text(json.dumps({**made, "version": "9.0"}))
    open_vocabulary(str(folder / "t.json"), "y.yaml:3")


def state(folder, packed):
    recipe = parse_recipe(RECIPE)
    with load(recipe, shards=packed, device="cpu") as pipe:
        pipe.load_state_dict(pipe.state_dict() | {"version": 9, "new": 1})


KINDS = [
    state,
    manifest,
    index,
    tokens,
    sentences,
    features,
    frame_labels,
    checkpoint,
    weights,
    tokenizer,
]


@pytest.mark.parametrize("read", KINDS, ids=lambda read: read.__name__)
def test_a_file_of_a_newer_format_says_so_in_one_line(read, packed, tmp_path):
    with pytest.raises(SslpipeError, match=r"written by a newer .*9.*; upgrade") as told:
        read(tmp_path, packed)
    assert "\n" not in str(told.value)


def test_the_weights_of_an_export_are_no_features_and_no_trace(tmp_path):
    said = {"sslpipe": "0.1.0"}  # what exports say there
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata=said)
    with pytest.raises(SslpipeError, match="format of features None, this sslpipe reads 1"):
        read_features(tmp_path / "model.safetensors")
