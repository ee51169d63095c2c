"""Batches of sound: the same on any ranks and after any resume, keyed by sample, replayable."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sslpipe
from sslpipe.cli.commands import app
from sslpipe.errors import ContractError, RecipeError, StateError
from sslpipe.modalities.audio import decider
from sslpipe.modalities.audio.policy import CROP, OPS
from sslpipe.modalities.audio.tasks import TASKS
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Place
from tests.conftest import ROOT
from tests.streaming import steps

from .sounds import chirp, encoded, load, packed

COUNT, BATCH = 37, 12
RECIPE = """
modality: audio
stream: {batch_size: 12, seed: 5}
views:
  wave: {ops: [Crop: {samples: 6000, rate: 16000}, Gain]}
  global:
    count: 2
    ops:
      - Crop: {seconds: 0.4, rate: 8000}
      - MelSpectrogram: {fft: 256, shift: 80, mels: 32, high: null}
      - Normalize: {mean: -5, std: 4}
      - MixLog: {ratio: 0.4}
      - RandomResizeCrop
      - SpecAugment: {frequency: 8, time: 10}
masks:
  spans: {view: wave, patch_size: 320, receptive_field: 400, sampler: {spans: {mask_length: 3}}}
targets:
  distractors: {view: wave, task: {distractors: {count: 7}}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Recordings of 0.1 to 1.5 s at three rates, in three formats, one or two channels."""
    folder, kinds, sounds = tmp_path_factory.mktemp("audio"), ("flac", "wav", "ogg"), {}
    for n in range(COUNT):
        rate, kind = (8_000, 16_000, 22_050)[n % 3], kinds[n // 3 % 3]
        sound = chirp(0.1 + 1.4 * n / COUNT, rate, channels=1 + n % 2, seed=n)
        sounds[f"s{n:02d}.{kind}"] = encoded(sound, rate, kind)
    return packed(folder / "in", folder / "out", sounds)


def trace(batches):
    """{(epoch, uid): all that a sample got}, over some batches."""
    found = {}
    for batch in batches:
        for b, uid in enumerate(batch.uids.tolist()):
            got = [*batch.views.values(), *batch.params.values(), *batch.masks.values(),
                   *batch.targets.values(), *batch.lengths.values()]  # fmt: skip
            found[batch.step, uid] = [tensor[:, b].numpy().copy() for tensor in got]
    return found


def same(one, other):
    assert one.keys() == other.keys()
    for key, arrays in one.items():
        for mine, theirs in zip(arrays, other[key], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)  # fft of other batch sizes


def test_what_a_batch_holds(shards):
    with load(RECIPE, shards) as pipe:
        (batch, *_), spec = steps(pipe, 1), pipe.spec
    for group, view in spec.views.items():
        assert batch.views[group].shape == (view.count, BATCH, *view.shape)
        assert batch.params[group].shape == (view.count, BATCH, len(view.columns))
    assert (spec.views["wave"].axes, spec.views["global"].axes) == ("T", "CFT")
    assert spec.views["global"].shape == (1, 32, 41)
    hidden = spec.masks["spans"].hidden
    assert (batch.masks["spans"].sum(-1) == hidden).all()
    assert spec.targets["distractors"].shape == (hidden, 7)
    assert batch.targets["distractors"].shape == (1, BATCH, hidden, 7)
    assert batch.views["wave"].abs().amax(-1).min() > 0.05
    assert batch.views["wave"].abs().max() <= 1.5
    real = batch.lengths["wave"][0]
    assert (real < 6_000).any()
    for view, count in zip(batch.views["wave"][0], real.tolist(), strict=True):
        assert not view[count:].any()
        assert view[count - 200 : count].any()
    with pytest.raises(ContractError, match="have the axes T, not 'C'"):
        spec.views["wave"].size("C")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_same_batches(shards, ranks):
    with load(RECIPE, shards) as pipe:
        alone = trace(steps(pipe, 5))
    together = {}
    for rank in range(ranks):
        with load(RECIPE, shards, rank=rank, world_size=ranks) as pipe:
            together |= trace(steps(pipe, 5))
    same(alone, together)


def test_a_stream_goes_on_where_it_stopped_on_other_ranks_and_with_workers(shards):
    with load(RECIPE, shards) as pipe:
        whole = trace(steps(pipe, 7))
    with load(RECIPE, shards, rank=0, world_size=2) as pipe:
        steps(pipe, 3)
        state = pipe.state_dict()
    assert "soxr" in state["recipe"]
    with load(RECIPE, shards, "run.workers=2", "run.prefetch=2") as pipe:
        pipe.load_state_dict(state)
        rest = trace(steps(pipe, 4))
    same({key: value for key, value in whole.items() if key[0] >= 3}, rest)
    state["recipe"] = state["recipe"].replace("soxr ", "soxr 0.")
    with load(RECIPE, shards) as pipe, pytest.raises(StateError):
        pipe.load_state_dict(state)


def test_a_sample_draws_alike_in_another_batch(shards):
    """Other neighbours, other places in the batch: masks and tables are of the sample."""
    with load(RECIPE, shards) as pipe:
        first = (
            {int(u): b for b in pipe if b.epoch == 0 for u in b.uids},
            trace_of(pipe, shards, 12),
        )
    other = trace_of(None, shards, 7)
    for uid, arrays in first[1].items():
        if uid in other:
            for mine, theirs in zip(arrays, other[uid], strict=True):
                assert (mine == theirs).all()


def trace_of(pipe, shards, size):
    """uid -> table, mask and distractors in epoch 0, in batches of `size`."""
    with load(RECIPE, shards, f"stream.batch_size={size}") as pipe:
        found = {}
        for batch in pipe:
            for b, uid in enumerate(batch.uids.tolist()):
                got = [*batch.params.values(), *batch.masks.values(), *batch.targets.values()]
                found.setdefault(uid, [tensor[:, b].numpy() for tensor in got])
        return found


def test_distractors_are_uniform_over_the_other_hidden_steps(shards):
    with load(RECIPE.replace("count: 7", "count: 100"), shards) as pipe:
        batches, hidden = steps(pipe, 6), pipe.spec.masks["spans"].hidden
    found = torch.cat([batch.targets["distractors"][0] for batch in batches])
    own = torch.arange(hidden)[:, None]
    assert not (found == own).any()
    assert (found.min(), found.max()) == (0, hidden - 1)
    steps_from_own = (found - own) % hidden
    counts = torch.bincount(steps_from_own.flatten(), minlength=hidden)[1:].double()
    assert (counts / counts.mean() - 1).abs().max() < 5 / counts.mean().sqrt()
    assert len({row.numpy().tobytes() for row in found}) == len(found)


MIXED = """
modality: audio
stream: {batch_size: 12, seed: 5}
views: {wave: {count: 2, ops: [Crop: {samples: 24000, rate: 16000, place: start}, Mix]}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


def heard(shards, text):
    """(uid, partners of its views) of some batches of MIXED, whose ops were changed to `text`."""
    with load(text, shards) as one, load(MIXED.replace(", Mix]", "]"), shards) as two:
        mixed, alone = steps(one, 4), steps(two, 4)
    plain = {int(uid): v for batch in alone for uid, v in rows_of(batch, "wave")}
    for batch, other in zip(mixed, alone, strict=True):
        for b, uid in enumerate(batch.uids.tolist()):
            partners, real = [], int(batch.lengths["wave"][0, b])
            for v in range(2):
                share, found = batch.params["wave"][v, b, -1], batch.views["wave"][v, b]
                left = ((found - (1 - share) * other.views["wave"][v, b]) / share)[:real]
                close = 1e-3 / share
                partners.append(
                    [u for u, x in plain.items() if (x[:real] - left).abs().max() < close]
                )
                assert not found[real:].any()
            yield uid, partners


def test_each_view_has_another_recording_of_the_set_as_partner_drawn_by_key(shards):
    """What is left of a mixture without the view itself is what another sample looks like."""
    found = list(heard(shards, MIXED))
    assert all(len(near) == 1 and near[0] != uid for uid, views in found for near in views)
    assert len({near[0] for _, views in found for near in views}) > 10
    apart = np.mean([first != second for _, (first, second) in found])
    assert apart > 0.4  # a shard has few others
    shared = heard(shards, MIXED.replace("count: 2,", "count: 2, draws: shared,"))
    assert all(first == second for _, (first, second) in shared)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("wave: {ops: [Crop: {samples: 6000, rate: 16000}, Gain]}", "wave: {ops: [Gain]}",
         "first op of views.wave must be Crop"),
        ("16000}, Gain]", "16000}, Crop: {samples: 5, rate: 9000}]", "Crop stands first"),
        ("rate: 16000}, Gain]", "rate: 16000}, Gian]", "did you mean 'Gain'"),
        ("rate: 16000}, Gain]", "rate: 16000}, SpecAugment]", "SpecAugment: is for spectrograms"),
        ("samples: 6000", "samples: 300", "receptive_field = 400 is more than"),
        ("{spans: {mask_length: 3}}", "{spans: {counts: free}}", "hides the same number of steps"),
        ("{distractors: {count: 7}}", "{distractors: {mask: spins}}", "masks.spins hides"),
        ("{distractors: {count: 7}}", "{distracters: {count: 7}}", "unknown task on audio"),
        ("      - RandomResizeCrop\n", "      - MixLog\n", "mixes its partner in once"),
        ("      - Normalize: {mean: -5, std: 4}", "      - SpecAugment: {frequency: 3}",
         "MixLog stands behind SpecAugment, which draws for the view"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_one_line(shards, old, new, words):
    assert old in RECIPE
    with pytest.raises(RecipeError, match=words) as caught:
        load(RECIPE.replace(old, new), shards)
    assert "t.yaml:" in str(caught.value)


def test_an_iterable_of_recordings_has_the_same_views(shards, tmp_path):
    """No index tells how long they are: their own headers do."""
    text = "- MixLog: {ratio: 0.4}\n      "
    recipe = RECIPE.replace(text, "").replace("batch_size: 12", "batch_size: 3")
    sounds = {f"a{n}": encoded(chirp(0.5 + 0.2 * n, seed=n)) for n in range(3)}
    given = [{"__key__": key, "flac": data} for key, data in sounds.items()]
    with load(recipe, given) as pipe:
        batch = next(iter(pipe))
    whole = {key: chirp(0.5 + 0.2 * n, seed=n)[:, 0] for n, key in enumerate(sounds)}
    for b, key in enumerate(batch.keys):
        high, start, gain = batch.params["wave"][0, b].tolist()
        start = int(high * 65_536 + start)
        expected = whole[key][start : start + 6_000] * gain
        np.testing.assert_allclose(batch.views["wave"][0, b], expected, atol=1.6 / 32_768)
    with pytest.raises(RecipeError, match=r"an\s+iterable does not allow"):
        load(RECIPE, given)


BOTH = """
modality: text
stream: {batch_size: 3}
views:
  tokens: {ops: [Tokens: {length: 16}]}
  wave: {modality: audio, dtype: bfloat16, ops: [Crop: {samples: 4000, rate: 16000}]}
run: {workers: 0, prefetch: 0, threads: 1}
"""


def test_sound_may_be_a_member_beside_text(tmp_path):
    """The index tells how long a text is, and nothing of the recording: its own header does."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(6):
            pair = {"txt": f"number {n}".encode(), "flac": encoded(chirp(0.3 + n / 9, seed=n))}
            for ext, data in pair.items():
                info = tarfile.TarInfo(f"{n}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    arguments = ["index", str(tmp_path / "a.tar"), "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, [*arguments, "--modality", "text"])
    assert run.exit_code == 0, run.output
    with load(BOTH, tmp_path / "out") as pipe:
        batch = next(iter(pipe))
    for b, key in enumerate(batch.keys):
        start = int(batch.params["wave"][0, b, 1])
        expected = chirp(0.3 + int(key) / 9, seed=int(key))[start : start + 4_000, 0]
        found = batch.views["wave"][0, b]
        assert found.dtype == torch.bfloat16
        np.testing.assert_allclose(found.float(), expected, atol=2e-3)


def test_evaluation_takes_the_middle_and_draws_nothing(shards):
    recipe = parse_recipe(RECIPE, path="t.yaml")
    view = decider.evaluation_views(recipe, ["wave", "global"])["global"]
    assert [op.name for op in view.ops] == ["Crop", "MelSpectrogram", "Normalize"]
    assert (view.ops[0].settings["place"], view.count) == ("centre", 1)
    changed = recipe.model_copy(update={"views": {"global": view}, "masks": {}, "targets": {}})
    with sslpipe.load(changed, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        first, second = ({int(u): v for b in steps(pipe, 4) for u, v in rows_of(b)} for _ in "ab")
    assert all(torch.allclose(first[uid], second[uid], atol=2e-5) for uid in first.keys() & second)


def rows_of(batch, group="global"):
    """uid and view of each sample."""
    return zip(batch.uids.tolist(), batch.views[group][0], strict=True)


def test_the_page_of_recipes_names_every_op_and_task():
    page = (ROOT / "pipelines" / "README.md").read_text()
    for name in (*OPS, CROP, *TASKS):
        assert f"`{name}`" in page


def test_the_plan_is_the_one_that_it_was():
    """A hash of all that is decided for some samples: new versions must not move it unasked."""
    recipe = parse_recipe(RECIPE, path="t.yaml")
    made = decider.AudioDecider(recipe, ["wave", "global"])
    uids, epochs = np.arange(9) * 1_234_567_891, np.repeat([0, 1], [6, 3])
    extents = np.array([[5_000 * (n + 1), (8_000, 16_000, 44_100)[n % 3], 1] for n in range(9)])
    words = made.instructions(epochs=epochs, uids=uids, extents=extents)
    tables = made.decide(epochs=epochs, uids=uids, extents=extents, place=Place(0, np.arange(9), 9))
    whole = hashlib.blake2b(words.tobytes(), digest_size=8)
    for kind in (tables.params, tables.masks, tables.targets):
        for name, table in sorted(kind.items()):
            whole.update(name.encode() + np.round(table.astype(np.float64), 3).tobytes())
    assert whole.hexdigest() == "a1bc1cfd0b962b05"
