"""Batches of similar lengths, and masks that lie in what is no padding."""

import itertools

import numpy as np
import pytest
import torch

from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.masks import Spans, draw_masks
from sslpipe.methods import build_method
from sslpipe.recipe import Entry
from sslpipe.rng import Keys
from tests.streaming import steps

from .sounds import chirp, encoded, load, packed

RATE, COUNT, SIZE = 8_000, 61, 6
RECIPE = """
modality: audio
stream: {batch_size: 6, seed: 3, order: global, bucket: {window: 25}}
views: {wave: {ops: [Crop: {samples: 8000, rate: 8000}, Gain]}}
masks:
  spans:
    {view: wave, patch_size: 80, receptive_field: 160,
     sampler: {spans: {mask_length: 5, counts: real}}}
targets: {distractors: {view: wave, task: {distractors: {count: 9}}}}
run: {workers: 0, prefetch: 0, threads: 1}
"""
PLAIN = RECIPE.replace(", bucket: {window: 25}", "")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Recordings of 0.05 to 1.25 s."""
    folder, sounds = tmp_path_factory.mktemp("lengths"), {}
    for n in range(COUNT):
        sounds[f"s{n:02d}.flac"] = encoded(chirp(0.05 + 0.02 * n, RATE, seed=n), RATE)
    return packed(folder / "in", folder / "out", sounds)


def spans_within(real, steps=99):
    """(B, T) bool of samples with so many real steps."""
    sampler, real = Spans(mask_length=5, counts="real"), np.asarray(real)
    keys = Keys(0, np.zeros_like(real), np.arange(len(real)), np.arange(1))
    return sampler.draw_within(keys, "masks/spans", (steps,), real)[0]


def test_spans_within_what_is_real_are_those_of_a_grid_of_that_length():
    for real in (30, 60, 99):
        alone = draw_masks(Spans(mask_length=5), grid=(real,), ids=range(500), name="spans")[0]
        hidden = spans_within(np.full(500, real))
        assert not hidden[:, real - 1 :].any()
        assert set(hidden.sum(1)) == set(alone.sum(1))
        np.testing.assert_allclose(hidden[:, :real].mean(0), alone.mean(0), atol=0.1)
    mixed = spans_within(np.tile([30, 60, 99], 200)[:500])
    for n, real in enumerate((30, 60, 99)):  # whatever else stands in the batch
        own = spans_within(np.full(500, real))
        assert (mixed[n::3] == own[n::3]).all()


def test_what_is_too_short_for_spans_hides_one_span_of_the_same_share():
    share = Spans(mask_length=5).mean(99) / 99
    for real in range(1, 9):
        hidden = spans_within(np.full(400, real))
        count = min(real - 1, round(share * real))
        assert set(hidden.sum(1)) == {count}
        assert not hidden[:, real - 1 :].any()
        starts = np.unique(hidden.argmax(1)[hidden.any(1)])
        assert len(starts) == (real - count if count else 0)  # anywhere
        assert all(np.diff(np.flatnonzero(row)).max(initial=1) == 1 for row in hidden)


def found(batches):
    """(step, uid) -> what a sample got; of the distractors those of its own hidden frames."""
    rows = {}
    for batch in batches:
        for b, uid in enumerate(batch.uids.tolist()):
            hidden, real = batch.masks["spans"][0, b], int(batch.lengths["wave"][0, b])
            count = int(hidden.sum())
            rows[batch.step, uid] = (
                real, batch.views["wave"][0, b, :real].tolist(), hidden.nonzero()[:, 0].tolist(),
                batch.targets["distractors"][0, b, :count].tolist(),
            )  # fmt: skip
    return rows


def test_an_epoch_has_every_sample_once_in_batches_of_similar_lengths(shards):
    with load(RECIPE, shards) as pipe, load(PLAIN, shards) as plain:
        batches, others = steps(pipe, COUNT), steps(plain, COUNT)
    uids = torch.cat([batch.uids for batch in batches]).tolist()
    assert all(len({*uids[e * COUNT : (e + 1) * COUNT]}) == COUNT for e in range(SIZE))
    assert {*uids} == {*torch.cat([batch.uids for batch in others]).tolist()}
    lengths = [batch.lengths["wave"][0] for batch in batches]
    spread = np.mean([int(x.max() - x.min()) for x in lengths])
    random = np.mean([int((x := b.lengths["wave"][0]).max() - x.min()) for b in others])
    assert spread < 0.6 * random
    padded = sum(batch.views["wave"].numel() for batch in batches)
    real = sum(int(x.sum()) for x in lengths)
    assert padded < 1.5 * real
    assert sum(batch.views["wave"].numel() for batch in others) > 1.5 * real
    for batch in batches:
        length, frames = batch.views["wave"].shape[-1], batch.masks["spans"].shape[-1]
        assert length >= batch.lengths["wave"].max()
        assert frames == 1 + (length - 160) // 80
    assert len({batch.views["wave"].shape[-1] for batch in batches}) > 3
    assert [b.uids.tolist() for b in batches[:10]] != [b.uids.tolist() for b in batches[10:20]]


def test_a_sample_is_the_same_in_a_bucket_and_without(shards):
    """What is decided for it looks at its own length, and never at how long the batch is."""
    with load(RECIPE, shards) as pipe, load(PLAIN, shards) as plain:
        one, two = (found(steps(each, 10)) for each in (pipe, plain))
    one, two = ({uid: row for (_, uid), row in rows.items()} for rows in (one, two))
    both = one.keys() & two.keys()
    assert len(both) > 50
    assert all(one[uid] == two[uid] for uid in both)


def test_ranks_and_a_resumed_stream_have_the_same_batches(shards):
    with load(RECIPE, shards) as pipe:
        whole = steps(pipe, 24)
    expected, parts = found(whole), {}
    for rank in range(2):
        with load(RECIPE, shards, rank=rank, world_size=2) as pipe:
            mine = steps(pipe, 14)
            state = pipe.state_dict()
        shapes = [(a.views["wave"].shape[-1], b.views["wave"].shape[-1]) for a, b in
                  zip(mine, whole, strict=False)]  # fmt: skip
        assert all(a == b for a, b in shapes)  # as long on all ranks
        parts |= found(mine)
    with load(RECIPE, shards, "run.workers=1") as pipe:
        pipe.load_state_dict(state)
        parts |= found(steps(pipe, 10))
    assert parts == expected


def test_hidden_frames_and_distractors_lie_in_what_is_real(shards):
    with load(RECIPE, shards) as pipe:
        batches = steps(pipe, 12)
        most = pipe.spec.masks["spans"].most
        assert pipe.spec.targets["distractors"].shape == (most, 9)
    shares = []
    for batch, b in itertools.product(batches, range(SIZE)):
        frames = max(1, 1 + (int(batch.lengths["wave"][0, b]) - 160) // 80)
        hidden, chosen = batch.masks["spans"][0, b], batch.targets["distractors"][0, b]
        count = int(hidden.sum())
        assert not hidden[frames - 1 :].any()
        assert batch.hidden["spans"][0, b] == count <= most
        if count > 1:
            assert chosen[:count].max() < count
            assert (chosen[:count] != torch.arange(count)[:, None]).all()
        if frames > 20:
            shares.append(count / frames)
    assert np.ptp(shares) < 0.1  # long and short ones hide as large a part


def test_wav2vec2_learns_of_batches_of_all_lengths_what_it_learns_of_padded_ones(shards):
    sizes = {"dim": 16, "depth": 1, "heads": 2, "conv_dim": 8, "kernels": [10, 3, 3, 3, 3],
             "strides": [5, 2, 2, 2, 2], "position_kernel": 4, "position_groups": 2,
             "conv_norm": "layer"}  # fmt: skip
    losses = []
    with load(RECIPE, shards) as pipe, load(PLAIN, shards) as plain:
        torch.manual_seed(0)
        encoder = build_encoder(Entry("wav2vec2", sizes), plain.spec.views["wave"])
        entry = Entry("wav2vec2", {"entries": 4, "dim": 8, "code_dim": 8, "penalty_weight": 0.0})
        method = build_method(entry, encoder, plain.spec).eval()
        for batch in steps(pipe, 4):
            output = method(batch)
            short = batch.views["wave"].shape[-1]
            padded = torch.nn.functional.pad(batch.views["wave"], (0, 8_000 - short))
            hidden = torch.nn.functional.pad(
                batch.masks["spans"], (0, 99 - batch.masks["spans"].shape[-1])
            )
            whole = type(batch)(**batch.asdict() | {
                "views": {"wave": padded}, "masks": {"spans": hidden}})  # fmt: skip
            losses.append((output.loss.item(), method(whole).loss.item()))
    for one, other in losses:
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("counts: real", "counts: equal", "let it know of\\s+lengths: sampler"),
        ("8000}, Gain]", "8000}, Fbank]", "one group of\\s+waveforms"),
        ("window: 25", "window: 0", "stream.bucket.window"),
    ],
)
def test_what_cannot_be_bucketed_is_said(shards, old, new, words):
    text = RECIPE.replace(old, new)
    if "Fbank" in new:
        text = text[: text.index("masks:")] + "run: {workers: 0}\n"
    with pytest.raises(RecipeError, match=words):
        load(text, shards)


def test_a_mixture_and_pictures_have_no_buckets(shards):
    with pytest.raises(RecipeError, match=r"one packed set by the lengths in\s+its index"):
        load(RECIPE, {"a": str(shards), "b": str(shards)})
    pictures = (
        "stream: {batch_size: 2, bucket: {}}\nviews: {global: {ops: [CenterCrop: {size: [8, 8]}]}}"
    )
    with pytest.raises(RecipeError, match=r"stream\.bucket sorts samples by length"):
        load(pictures, shards)
