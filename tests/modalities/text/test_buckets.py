"""Batches of rows of similar length: few lengths, the same on any ranks, at any resume, any loss;
and what any stream of rows is: the same for any batch, ranks, prefetch and stop."""

from functools import partial

import numpy as np
import pytest
import torch

from sslpipe.bench import measure
from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.methods import build_method
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.layout import bucket_lengths
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack

from ... import streaming
from ...streaming import steps

LENGTH = 64
RECIPE = f"""
modality: text
stream: {{batch_size: 24, rows: {{packing: split, window: 100, bucket: true}}}}
views: {{tokens: {{ops: [Tokens: {{length: {LENGTH}, begin: true}}]}}}}
targets: {{mlm: {{view: tokens, task: mlm}}}}
method: mlm
train:
  backbone: {{bert: {{dim: 16, depth: 1, heads: 2}}}}
  optimizer: {{adamw: {{lr: 1.0e-3}}}}
  epochs: 1
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
load = partial(streaming.load, text=RECIPE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """240 documents of 1 to 200 letters."""
    rng = np.random.default_rng(0)
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("shards") / "text"
    for n, size in enumerate(np.minimum(1 + rng.lognormal(2.7, 1, 240).astype(int), 200)):
        (folder / f"d{n:03d}.txt").write_text("".join(rng.choice(list("abcdefgh "), size)))
    pack(folder, out, PackSettings(codec=TextCodec(), shard_samples=60))
    return out


def same(one, other, slots=slice(None)):
    assert torch.equal(one.views["tokens"][0], other.views["tokens"][0][slots])
    assert torch.equal(one.targets["mlm"][0], other.targets["mlm"][0][slots])
    assert torch.equal(one.segments["tokens"], other.segments["tokens"][:, slots])


def test_batches_are_as_long_as_their_bucket_and_hold_every_byte(shards):
    with load(shards) as pipe, load(shards, "stream.rows.bucket=false") as plain:
        found, truth = steps(pipe, len(pipe) + 2), steps(plain, len(plain) + 2)
        assert len(pipe) == len(plain)
        count = pipe.source.rows.epoch_rows(0)
    lengths = [batch.views["tokens"].shape[-1] for batch in found]
    assert set(lengths) <= {*bucket_lengths(LENGTH)}
    assert len(set(lengths)) > 2
    for batch, length in zip(found, lengths, strict=True):
        assert batch.targets["mlm"].shape[-1] == batch.segments["tokens"].shape[-1] == length
        longest = int(batch.lengths["tokens"].max())
        assert length == min(b for b in bucket_lengths(LENGTH) if b >= longest)

    def rows(batches):
        ids = [b.views["tokens"][0].where(b.targets["mlm"][0] < 0, b.targets["mlm"][0])
               for b in batches]  # fmt: skip
        return sorted([r[r != 0].tolist() for each in ids for r in each][:count])

    assert rows(found) == rows(truth)  # those of the first epoch
    padded = sum(24 * length for length in lengths)
    assert padded < 0.75 * 24 * LENGTH * len(found)


def test_a_piece_has_the_mask_that_it_has_without_buckets(shards):
    def masks(*overrides):
        with load(shards, *overrides) as pipe:
            found = {}
            for batch in steps(pipe, len(pipe)):
                for key, tokens, targets, n in zip(
                    batch.keys, batch.views["tokens"][0], batch.targets["mlm"][0],
                    batch.lengths["tokens"][0].tolist(), strict=True,
                ):  # fmt: skip
                    text = tokens.where(targets < 0, targets)[:n].tolist()
                    found.setdefault((key, *text), targets[:n].tolist())
            return found

    one, other = masks(), masks("stream.rows.bucket=false")
    both = one.keys() & other.keys()
    assert len(both) > 200
    assert all(one[piece] == other[piece] for piece in both)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_all_ranks_have_rows_of_one_length_and_as_many_batches(shards, world_size):
    with load(shards) as pipe:
        whole, count = steps(pipe, 14), len(pipe)
    for rank in range(world_size):
        with load(shards, rank=rank, world_size=world_size) as pipe:
            assert len(pipe) == count
            for mine, batch in zip(steps(pipe, 14), whole, strict=True):
                same(mine, batch, pipe.source.slots_at(mine.step))


def test_a_resume_anywhere(shards):
    with load(shards) as pipe:
        truth, states = [], []
        for _ in range(3):
            for batch in pipe:
                states.append(pipe.state_dict())
                truth.append(batch)
    for step in (1, 5, len(truth) // 2, len(truth) - 1):
        with load(shards, "run.prefetch=3") as pipe:
            pipe.load_state_dict(states[step - 1])
            same(next(iter(pipe)), truth[step])


def test_the_loss_is_that_of_rows_of_full_length(shards):
    with load(shards) as pipe:
        recipe, spec, batches = pipe.recipe, pipe.spec, steps(pipe, 6)
    encoder = build_encoder(recipe.train.backbone, spec.views["tokens"])
    method = build_method(recipe.method, encoder, spec).double().eval()
    short = [b for b in batches if b.views["tokens"].shape[-1] < LENGTH]
    assert len(short) > 2
    for batch in short:
        loss = method(batch).loss.item()
        width = LENGTH - batch.views["tokens"].shape[-1]
        batch.views["tokens"] = torch.nn.functional.pad(batch.views["tokens"], (0, width))
        batch.targets["mlm"] = torch.nn.functional.pad(batch.targets["mlm"], (0, width), value=-100)
        documents, positions = batch.segments["tokens"]
        batch.segments["tokens"] = torch.stack([
            torch.nn.functional.pad(documents, (0, width), value=-1),
            torch.nn.functional.pad(positions, (0, width)),
        ])  # fmt: skip
        assert method(batch).loss.item() == pytest.approx(loss, abs=1e-6)


def test_what_buckets_do_not_suit(shards):
    with pytest.raises(RecipeError, match="is for packing: one or split"):
        load(shards, "stream.rows.packing=best_fit")
    tokens = "{length: 64, vocabulary: bytes_t5, begin: false, end: false}"
    t5 = ("targets.mlm.task=t5", f"views.tokens.ops=[Tokens: {tokens}]")
    with pytest.raises(RecipeError, match="so batches cannot have another"):
        load(shards, *t5)


# ---- any stream of rows


def plain_rows(shards, count, *overrides, rank=0, world_size=1, start=0):
    """Rows `start` to `start + count` of a rank: tokens, targets, segments."""
    found = []
    layout = ("stream.rows={packing: best_fit, window: 40}", *overrides)
    with load(shards, *layout, rank=rank, world_size=world_size) as pipe:
        size = pipe.spec.global_size
        assert start % size == 0
        pipe.load_state_dict({**pipe.state_dict(), "step": start // size})
        while len(found) < count:
            for b in pipe:
                found += zip(
                    b.views["tokens"][0].tolist(), b.targets["mlm"][0].tolist(),
                    b.segments["tokens"].movedim(1, 0).tolist(), strict=True,
                )  # fmt: skip
    return found[:count]


def test_rows_are_the_same_for_any_batch_any_ranks_any_prefetch_and_from_any_row(shards):
    """Batches of 1 and 7, 16, 24: the stream of rows is one, over ends of epochs."""
    truth = plain_rows(shards, 336, "stream.batch_size=1", "stream.order=global")
    for size, prefetch, workers in ((7, 0, 0), (16, 3, 0), (24, 1, 0)):
        settings = (
            f"stream.batch_size={size}", "stream.order=global",
            f"run.prefetch={prefetch}", f"run.workers={workers}",
        )  # fmt: skip
        assert plain_rows(shards, 336, *settings) == truth
        for start in (size, 12 * size):
            assert plain_rows(shards, 40, *settings, start=start) == truth[start : start + 40]
        for world_size in (n for n in (2, 3, 8) if size % n == 0):
            each = size // world_size
            for rank in (0, world_size - 1):
                mine = plain_rows(shards, 2 * each, *settings, rank=rank, world_size=world_size)
                own = slice(rank * each, (rank + 1) * each)
                assert mine == truth[:size][own] + truth[size : 2 * size][own]


def test_rates_of_text_are_of_rows_and_tokens(shards):
    recipe = parse_recipe(RECIPE, path="t.yaml", overrides=["stream.batch_size=8"])
    stages = measure(recipe, shards=shards, device="cpu", seconds=0.02)
    assert (stages.unit, stages.steps) == ("row", "tokens")
    with load(shards, "stream.batch_size=8") as pipe:
        four = steps(pipe, 4)
    tokens = sum(int(batch.lengths["tokens"].sum()) for batch in four)
    assert stages.steps_each == pytest.approx(tokens / 32)
    assert "rows/s" in stages.verdict
    assert "tokens/s" in stages.verdict
    assert "image" not in stages.verdict
    plain = measure(
        parse_recipe(RECIPE, path="t.yaml", overrides=["stream.rows=null"]),
        shards=shards, device="cpu", seconds=0.02, with_method=False,
    )  # fmt: skip
    assert plain.unit == "document"
