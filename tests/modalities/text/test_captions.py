"""Captions beside pictures: which one, its tokens, and what becomes of samples without any."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

import sslpipe
from sslpipe import rng
from sslpipe.errors import RecipeError, SampleError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.sheets import draw_sheet
from sslpipe.modalities.text.captions import CaptionDecode, Captions
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.scan import Rules
from sslpipe.stream.reader import Sample

RECIPE = """\
modality: image
stream: {batch_size: 6, seed: 3}
views:
  global: {count: 2, ops: [RandomResizedCrop: {size: [16, 16]}]}
  text: {modality: text, ops: [Captions: {length: 40, field: captions}]}
run: {threads: 1, prefetch: 1, workers: 0}
"""
VOCABULARY = Bytes()
TXT = "views.text.ops=[{Captions: {length: 40}}]"


def recipe_of(*overrides):
    return parse_recipe(RECIPE, path="r.yaml", overrides=list(overrides))


def opened(shards, *overrides, **settings):
    return sslpipe.load(recipe_of(*overrides), shards=shards, device="cpu", **settings)


def words(row, length):
    """The text of a row of tokens, without what stands around it."""
    return VOCABULARY.decode(row[:length].numpy())


def rows_of(batch):
    """uid -> key, text, caption number, how many."""
    lengths, chosen = batch.lengths["text"][0].tolist(), batch.params["text"][0].int().tolist()
    rows = zip(
        batch.uids.tolist(), batch.keys, batch.views["text"][0], lengths, chosen, strict=True
    )
    return {uid: (key, words(row, length), *numbers) for uid, key, row, length, numbers in rows}


def numbered(key):
    """The number in a key of the fixture."""
    return int(key.rpartition("/")[2])


# --- which caption


def test_a_caption_is_one_of_its_own_picture_and_its_number_is_told(captioned):
    with opened(captioned) as pipe:
        assert pipe.spec.views["text"].columns == ("caption", "captions")
        seen = [rows_of(batch) for batch in pipe]
    found = {uid: row for batch in seen for uid, row in batch.items()}
    assert len(found) == 30
    for key, text, number, count in found.values():
        stem, folder = key.rpartition("/")[2], key.partition("/")[0]
        assert count == 1 + numbered(key) % 4
        assert text == f"caption {number} of {stem}, a {folder}"


def test_the_choice_is_a_function_of_seed_epoch_and_uid(captioned):
    """floor(u n), u the keyed word: so a caption can be named without reading any."""
    with opened(captioned) as pipe:
        for epoch in (0, 1):
            for batch in pipe:
                word = rng.words(1, seed=3, epoch=epoch, stream="captions", ids=batch.uids.numpy())[
                    :, 0
                ]
                number, count = batch.params["text"][0].long().unbind(1)
                assert number.tolist() == [
                    int(w) * n >> 32 for w, n in zip(word, count.tolist(), strict=True)
                ]


def test_captions_are_equally_likely_over_epochs():
    decode = CaptionDecode(Captions(length=9, field="captions"), VOCABULARY)
    data = json.dumps({"captions": ["a", "b", "c"]}).encode()
    word = rng.words(1, seed=0, epoch=np.arange(3000), stream="captions", ids=7)[:, 0]
    raws = [decode(Sample(7, "k", -1, data), (int(w),)) for w in word]
    shares = Counter(raw.extent[1] for raw in raws)
    sigma = (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(shares[number] - 1000) < 4 * sigma for number in range(3))


def test_ranks_batches_and_kills_change_no_caption(captioned):
    def stream(world, batch_size, start=0):
        found = {}
        for rank in range(world):
            with opened(
                captioned, f"stream.batch_size={batch_size}", "stream.order=global", rank=rank,
                world_size=world,
            ) as pipe:  # fmt: skip
                if start:
                    state = pipe.state_dict() | {"step": start}
                    pipe.load_state_dict(state)
                for _ in range(2):
                    for batch in pipe:
                        for uid, row in rows_of(batch).items():
                            found[batch.epoch, uid] = row
        return found

    one = stream(1, 6)
    assert len(one) == 60
    assert stream(2, 6) == stream(3, 6) == stream(1, 15) == one
    later = stream(3, 6, start=3)  # 12 samples of epoch 0 are left, then epoch 1
    assert {key: one[key] for key in later if key in one} == {
        k: later[k] for k in later if k in one
    }
    assert len([key for key in later if key[0] == 0]) == 12
    several = [uid for uid in {uid for _, uid in one} if one[0, uid][3] > 1]
    assert any(one[0, uid] != one[1, uid] for uid in several)


def test_workers_and_iterables_give_the_same_captions(captioned):
    with opened(captioned, "stream.order=sequential") as pipe:
        here = [rows_of(batch) for batch in pipe]
    with opened(captioned, "stream.order=sequential", "run.workers=1") as pipe:
        assert [rows_of(batch) for batch in pipe] == here
    samples = []
    for path in sorted(captioned.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ext = member.name.partition(".")
                if not samples or samples[-1]["__key__"] != key:
                    samples.append({"__key__": key})
                samples[-1][ext] = tar.extractfile(member).read()
    with opened(samples) as pipe:
        theirs = [rows_of(batch) for batch in pipe]
    assert theirs == here


def test_evaluation_takes_the_caption_that_it_names(captioned):
    second = "views.text.ops=[{Captions: {length: 40, field: captions, choice: 1}}]"
    with opened(captioned, second) as pipe:
        rows = [row for batch in pipe for row in rows_of(batch).values()]
    assert all(number == min(1, count - 1) for _, _, number, count in rows)


# --- tokens


def test_what_is_too_long_is_cut_and_still_ends():
    decode = CaptionDecode(Captions(length=6), VOCABULARY)
    ids = decode(Sample(0, "k", -1, b"  A \n long\tCaption "), (0,)).data.tolist()
    assert ids == [VOCABULARY.begin, *(b + VOCABULARY.first for b in b"a lo"), VOCABULARY.end]
    bare = Captions(length=6, begin=False, end=False, lower=False)
    ids = CaptionDecode(bare, VOCABULARY)(Sample(0, "k", -1, b"A long Caption"), (0,)).data
    assert VOCABULARY.decode(ids) == "A long"


def test_padding_is_told_from_tokens(captioned):
    with opened(captioned, TXT) as pipe:
        batch = next(iter(pipe))
    tokens_BL, (documents_BL, positions_BL) = batch.views["text"][0], batch.segments["text"]
    real = torch.arange(40) < batch.lengths["text"][0][:, None]
    assert torch.equal(tokens_BL != VOCABULARY.pad, real)
    assert torch.equal(documents_BL, real.long() - 1)
    assert torch.equal(positions_BL, torch.where(real, torch.arange(40), 0))
    assert [words(row, 40) for row in tokens_BL] == [
        f"the text of {key.rpartition('/')[2]}" for key in batch.keys
    ]


def test_the_text_of_a_json_may_be_one_text():
    decode = CaptionDecode(Captions(length=9, field="alt"), VOCABULARY)
    raw = decode(Sample(0, "k", -1, b'{"alt": "one"}'), (2**32 - 1,))
    assert (VOCABULARY.decode(raw.data), raw.extent) == ("one", (5, 0, 1))


def test_a_decoder_needs_no_torch():
    code = "import sys, sslpipe.modalities.text.captions; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- samples without


def tar_of(folder, members):
    """A tar of pictures with those members beside them, indexed."""
    picture = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(picture, "PNG")
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, beside in members.items():
            for ext, data in {"png": picture.getvalue(), **beside}.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    adopt([str(folder)], rules=Rules(ImageCodec()))
    return folder


GOOD = {f"good{n}": {"json": b'{"captions": ["fine"]}', "txt": b"fine"} for n in range(5)}
BAD = {
    "no member": ({"txt": b"x"}, r"has no member \.json"),
    "empty list": ({"json": b'{"captions": []}'}, r"no caption in its \.json under 'captions'"),
    "blanks": ({"json": b'{"captions": [" ", ""]}'}, "no caption in its"),
    "other field": ({"json": b'{"text": "x"}'}, r"no 'captions' .*it has text.*set field of"),
    "numbers": ({"json": b'{"captions": [1]}'}, "no 'captions' that is a text or a list of texts"),
    "no object": ({"json": b"[1]"}, "no object"),
    "no JSON": ({"json": b"{"}, "does not parse"),
    "half a sign": (
        {"json": rb'{"captions": ["fine", "a \ud83d cat"]}'},
        r"under 'captions' has the sign '\\ud83d', which is no Unicode",
    ),
    "no UTF-8": ({"json": b'{"captions": ["\xff"]}'}, "not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_sample_without_a_caption_is_bad_and_says_why(tmp_path, kind):
    beside, message = BAD[kind]
    shards = tar_of(tmp_path / "s", {**GOOD, "bad": beside})
    with (
        opened(shards, "stream.on_bad=raise") as pipe,
        pytest.raises(SampleError, match=rf"a\.tar bad: .*{message}"),
    ):
        next(iter(pipe))


def test_it_is_replaced_or_masked_by_policy(tmp_path):
    shards = tar_of(tmp_path / "s", {**GOOD, "bad": {"json": b"{}"}})
    with opened(shards, "stream.max_bad_fraction=1", "stream.lanes=1") as pipe:
        batch = next(iter(pipe))
        assert pipe.replaced == 1
    assert batch.valid.all()
    assert "bad" not in batch.keys
    assert (batch.lengths["text"] == 6).all()
    with opened(shards, "stream.on_bad=mask", "stream.max_bad_fraction=1") as pipe:
        batch = next(iter(pipe))
    (place,) = [n for n, ok in enumerate(batch.valid.tolist()) if not ok]
    assert batch.lengths["text"][0, place] == 0
    assert (batch.segments["text"][0, place] == -1).all()
    assert (batch.views["text"][0, place] == VOCABULARY.pad).all()


def test_an_empty_txt_is_no_caption(tmp_path):
    shards = tar_of(tmp_path / "s", {**GOOD, "bad": {"txt": b" \n"}})
    with (
        opened(shards, TXT, "stream.on_bad=raise") as pipe,
        pytest.raises(SampleError, match=r"bad: has no caption in its \.txt"),
    ):
        next(iter(pipe))


def test_the_name_that_packing_keeps_is_no_caption(tmp_path):
    """`name.json` is a member of its own: of two members that end alike the plain one is meant."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 30), "red").save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(json.dumps({"captions": [f"n{number}"]}))
    pack(folder, tmp_path / "s", PackSettings(codec=ImageCodec(), keep_names=True))
    with opened(tmp_path / "s") as pipe:
        rows = rows_of(next(iter(pipe))).values()
    assert all(text == f"n{key}" for key, text, _, _ in rows)


# --- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modality=text"], r"Captions stand beside a picture.*write modality: image"),
        (["views.text.count=2"], r"views\.text is of captions, which has one view and one op"),
        ([TXT.replace("40", "2")], r"length = 2; set 3 to 65,536 tokens"),
        ([TXT.replace("length: 40", "lenght: 40")], "has no setting 'lenght'; did you mean"),
        ([TXT.replace("40", "40, choice: -1")], r"choice = -1; set 0 for the first"),
        ([TXT.replace("40", "40, vocabulary: none.json")], r"vocabulary = 'none\.json': is none"),
        (["views.text.ops=[{Tokens: {length: 40}}]"], r"beside modality 'image'.*Captions"),
        (
            ["masks={m: {view: text, patch_size: 4, sampler: random}}"],
            r"masks\.m is of views\.text",
        ),
        (["targets={t: {view: text, task: mlm}}"], r"targets\.t is of views\.text, captions"),
        (
            ["views.more={modality: text, ops: [{Captions: {length: 9}}]}"],
            r"2 groups of text; a recipe has one",
        ),
    ],
)
def test_what_does_not_suit_is_one_line(captioned, overrides, message):
    if overrides == ["modality=text"]:
        overrides = ["modality=text", "views={text: {ops: [{Captions: {length: 9}}]}}"]
    with pytest.raises(RecipeError, match=message) as caught:
        opened(captioned, *overrides)
    assert "\n" not in str(caught.value)


# --- looking


def test_each_picture_stands_above_its_caption(captioned):
    with opened(captioned) as pipe:
        share = pipe.load_share(0)
        batch = pipe.make_batch(share, 0)
        whole = draw_sheet(pipe.parts, batch, pipe.spec, share.columns, rows=3)
        sheets = [
            part.modality.sheet(batch, pipe.spec, part.decider, column, rows=3)
            for part, column in zip(pipe.parts, share.columns, strict=True)
        ]
    bands = [sheet.height // 3 for sheet in sheets]
    assert whole.height == 3 * sum(bands)
    for row in range(3):
        for number, sheet in enumerate(sheets):
            top = row * sum(bands) + sum(bands[:number])
            found = whole.crop((0, top, sheet.width, top + bands[number]))
            band = (0, row * bands[number], sheet.width, (row + 1) * bands[number])
            assert found.tobytes() == sheet.crop(band).tobytes()


def test_settings_are_plain(captioned):
    with opened(captioned) as pipe:
        (text,) = [part for part in pipe.parts if not part.owns_payload]
        assert text.members == {"json"}
        assert asdict(text.decider.settings)["field"] == "captions"
        assert text.decider.summaries["text"].endswith("in .json 'captions'")
