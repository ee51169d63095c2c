"""Runs on text: dropout and drawn guesses come again after a resume; weights go on by --from."""

import pytest
import torch

from sslpipe.errors import StateError
from sslpipe.export import ExportSettings, export_checkpoint
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.train.loop import train_recipe

SMALL = {
    "simcse_bytes": ["train.backbone.bert.depth=1", "train.backbone.bert.dim=32"],
    "electra_bytes": ["train.backbone.bert.depth=1", "train.backbone.bert.dim=32"],
    "t5_bytes": [
        "train.backbone.t5={dim: 32, depth: 1, heads: 4, width: 64, dropout: 0.1}",
        "train.optimizer={adafactor: {lr: 0.01}}",
    ],
    "gpt_bytes": [
        "train.backbone={gpt: {dim: 32, depth: 1, heads: 2}}",
        "train.optimizer={muon: {lr: 0.01}}",
    ],
    "bert_bytes": [
        "train.backbone.bert.depth=1",
        "train.backbone.bert.dim=32",
        "views.tokens.ops=[{Tokens: {length: 128, vocabulary: bytes, begin: true, end: true}}]",
    ],
}


def go(name, texts, out, steps, *, resume=False, start=None, more=()):
    overrides = ["stream.batch_size=8", "run.workers=0", "train.epochs=2", *SMALL[name], *more]
    train_recipe(
        load_recipe(find_recipe(name), overrides=overrides), shards=texts, out=out, resume=resume,
        start=start, max_steps=steps, device="cpu",
    )  # fmt: skip
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("name", ["simcse_bytes", "electra_bytes", "t5_bytes", "gpt_bytes"])
def test_a_resumed_run_drops_and_draws_what_it_would_have(name, texts, tmp_path):
    whole = go(name, texts, tmp_path / "whole", 4)
    go(name, texts, tmp_path / "cut", 2)
    torch.manual_seed(77)  # the caller's generator is not what draws
    resumed = go(name, texts, tmp_path / "cut", 4, resume=True)
    assert whole["method"].keys() == resumed["method"].keys()
    for place, tensor in whole["method"].items():
        assert torch.equal(tensor, resumed["method"][place]), place


def test_simcse_goes_on_from_an_exported_bert_with_shorter_rows(texts, tmp_path, capfd):
    begun = go("bert_bytes", texts, tmp_path / "bert", 2)
    export_checkpoint(tmp_path / "bert", tmp_path / "hf", ExportSettings(("hf",)))
    found = go("simcse_bytes", texts, tmp_path / "simcse", 1, start=tmp_path / "hf")
    told = " ".join(capfd.readouterr().err.split())
    assert "left out cls; the first 64 of 128 positions" in told
    place = "embeddings.position_embeddings.weight"
    moved = (found["encoder"][place] - begun["encoder"][place][:64]).abs().max()
    assert 0 < moved < 0.01  # of one step
    with pytest.raises(StateError, match=r"has dim 32, not 64, width 128, not 256; set train\."):
        go("simcse_bytes", texts, tmp_path / "other", 1, start=tmp_path / "hf",
           more=["train.backbone.bert.dim=64"])  # fmt: skip
