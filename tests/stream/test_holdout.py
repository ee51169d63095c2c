"""Samples that are held out: by uid alone, whole, in every stream, on any ranks."""

from dataclasses import replace

import numpy as np
import pytest

import sslpipe
from sslpipe.errors import RecipeError, ShardError, StateError
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import parse_recipe
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack
from sslpipe.stream.holdout import held_out

TEXT = """
modality: text
stream: {batch_size: 8, rows: {packing: PACKING, window: 30}}
views: {tokens: {ops: [Tokens: {length: 32}]}}
run: {workers: 0, prefetch: 0, threads: 1}
"""
IMAGE = """
modality: image
stream: {batch_size: 4}
views: {global: {ops: [CenterCrop: {size: [8, 8]}]}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folder of shards, and uid -> bytes of each document."""
    rng = np.random.default_rng(0)
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("shards") / "text"
    sizes = np.minimum(1 + rng.lognormal(3.3, 1, 150).astype(int), 300)
    documents = {f"doc{i:03d}": bytes(rng.integers(97, 123, size)) for i, size in enumerate(sizes)}
    for key, data in documents.items():
        (folder / f"{key}.txt").write_bytes(data)
    pack(folder, out, PackSettings(codec=TextCodec(), shard_bytes=40_000))
    return out, {sample_id(key): len(data) for key, data in documents.items()}


def load(text, shards, *overrides, **ranks):
    recipe = parse_recipe(text, path="t.yaml", overrides=overrides)
    return sslpipe.load(
        recipe, shards=shards, device="cpu", **{"rank": 0, "world_size": 1, **ranks}
    )


def part_of(name, fraction=0.2):
    return f"stream.holdout={{fraction: {fraction}, part: {name}}}"


def uids_of_epoch(pipe):
    """The documents whose pieces stand in the rows of the first epoch."""
    rows = range(pipe.source.rows.epoch_rows(0))
    positions = pipe.source.rows.at(rows).positions
    located = pipe.source.corpora[0].locate(positions)
    return pipe.source.corpora[0].records.at(located.shards, located.rows).samples["uid"]


# --- the choice


def test_a_share_of_uids_that_grows_and_changes_no_other_choice():
    uids = np.random.default_rng(0).integers(-(2**63), 2**63, 20_000)
    few, many = held_out(uids, 0.05), held_out(uids, 0.2)
    assert abs(few.mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(uids))
    assert (many | ~few).all()  # a larger share contains a smaller one
    assert held_out(uids[::-1], 0.05)[::-1].tolist() == few.tolist()
    assert held_out(uids[7:8], 0.05)[0] == few[7]


@pytest.mark.parametrize("packing", ["best_fit", "concat", "split", "overlap", "one"])
def test_rows_of_both_parts_are_all_documents_and_none_twice(texts, packing):
    shards, sizes = texts
    text = TEXT.replace("PACKING", packing)
    found = {}
    for name in ("train", "held_out"):
        with load(text, shards, part_of(name)) as pipe:
            found[name] = set(uids_of_epoch(pipe).tolist())
    assert not found["train"] & found["held_out"]
    assert found["train"] | found["held_out"] == set(sizes)
    uids = np.array(sorted(sizes))
    assert found["held_out"] == set(uids[held_out(uids, 0.2)].tolist())


def test_naive_error_a_random_split_of_packed_rows_has_documents_on_both_sides(texts):
    shards, _ = texts
    with load(TEXT.replace("PACKING", "concat"), shards) as pipe:
        count = pipe.source.rows.epoch_rows(0)
        order = np.random.default_rng(0).permutation(count)
        sides = []
        for rows in (order[: count // 5], order[count // 5 :]):
            positions = pipe.source.rows.at(rows.tolist()).positions
            sides.append(set(positions.tolist()))
    assert len(sides[0] & sides[1]) > 20


def test_the_seed_of_a_run_does_not_choose(texts):
    shards, _ = texts
    found = []
    for seed in (0, 1):
        text = TEXT.replace("PACKING", "best_fit")
        with load(text, shards, part_of("held_out"), f"stream.seed={seed}") as pipe:
            found.append(set(uids_of_epoch(pipe).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("ranks", [2, 4])
def test_batches_are_the_same_on_any_ranks_and_after_a_resume(texts, ranks):
    shards, _ = texts
    text = TEXT.replace("PACKING", "best_fit")
    with load(text, shards, part_of("train")) as pipe:
        whole = [batch.views["tokens"][0] for batch in pipe]
    parts = []
    for rank in range(ranks):
        with load(text, shards, part_of("train"), rank=rank, world_size=ranks) as pipe:
            pipe.load_state_dict({**pipe.state_dict(), "step": 2, "anchor": [0, 0]})
            parts.append([batch.views["tokens"][0] for batch in pipe])
    for step, expected in enumerate(whole[2:]):
        got = np.concatenate([mine[step] for mine in parts])
        assert (got == expected.numpy()).all()


def test_a_state_of_one_part_is_none_of_the_other(texts):
    shards, _ = texts
    text = TEXT.replace("PACKING", "best_fit")
    plain = parse_recipe(text, path="t.yaml")
    assert "holdout" not in plain.model_dump(exclude_defaults=True)["stream"]
    prints = {
        parse_recipe(text, path="t.yaml", overrides=overrides).data_fingerprint
        for overrides in ([], [part_of("train")], [part_of("held_out")], [part_of("train", 0.3)])
    }
    assert len(prints) == 4
    with load(text, shards, part_of("train")) as train:
        state = train.state_dict()
    with load(text, shards) as everything, pytest.raises(StateError, match="recipe"):
        everything.load_state_dict(state)


# --- samples that are not packed


@pytest.mark.parametrize("exclude", [False, True])
def test_samples_of_both_parts_are_all_samples(packed, exclude):
    from sslpipe.shards import open_manifest

    manifest = open_manifest(packed)
    if exclude:
        manifest = replace(manifest, exclude={manifest.shards[0].file: (0, 2)})
    once = ("stream.order=sequential",)
    with load(IMAGE, manifest, *once) as pipe:
        every = np.concatenate([batch.uids for batch in pipe])
    found = []
    for name in ("train", "held_out"):
        with load(IMAGE, manifest, *once, part_of(name, 0.4)) as pipe:
            found.append(np.concatenate([batch.uids for batch in pipe]))
    assert sorted(np.concatenate(found).tolist()) == sorted(every.tolist())
    assert held_out(found[1], 0.4).all()
    assert not held_out(found[0], 0.4).any()


def test_an_empty_part_is_refused(packed, texts):
    with pytest.raises(ShardError, match=r"held_out.*has no sample"):
        load(IMAGE, packed, part_of("held_out", 1e-9))
    with pytest.raises(RecipeError, match=r"stream\.holdout\.part = 'held_out'"):
        load(TEXT.replace("PACKING", "split"), texts[0], part_of("held_out", 1e-9))


def test_an_iterable_has_no_uids_to_hold_out_by(packed):
    with pytest.raises(RecipeError, match="iterable"):
        load(IMAGE, iter([]), part_of("train"), "stream.epoch_samples=8")


# --- every row once


def test_rows_in_sequence_are_an_epoch_with_a_short_last_batch(texts):
    shards, sizes = texts
    text, once = TEXT.replace("PACKING", "split"), "stream.order=sequential"
    with load(text, shards, once, "stream.on_bad=raise") as pipe:
        count = pipe.source.rows.epoch_rows(0)
        batches = list(pipe)
        again = list(pipe)
    assert count % 8
    assert len(batches) == count // 8 + 1
    assert sum(len(batch.uids) for batch in batches) == count
    steps = {}
    for batch in batches:
        for uid, length in zip(
            batch.uids.tolist(), batch.lengths["tokens"][0].tolist(), strict=True
        ):
            steps[uid] = steps.get(uid, 0) + length
    assert steps == {uid: size + 1 for uid, size in sizes.items()}  # and the end
    uids = [sorted(uid for b in epoch for uid in b.uids.tolist()) for epoch in (batches, again)]
    assert uids[0] == uids[1]
    assert again[0].epoch == batches[0].epoch + 1
    with pytest.raises(RecipeError, match="short"):
        load(text, shards, once, world_size=2)
    with pytest.raises(RecipeError, match="remainder"):
        load(text, shards, "stream.remainder=short")
