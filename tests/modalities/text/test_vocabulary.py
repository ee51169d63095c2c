"""Trained vocabularies: nothing lost by BPE, special strings are text, rows of every token."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import sslpipe
from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError, SampleError, StateError
from sslpipe.modalities.text import tokens
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.counting import count_tokens
from sslpipe.modalities.text.tasks import replacements
from sslpipe.modalities.text.tokens import TokenDecode
from sslpipe.modalities.text.trained import TrainedVocabulary, open_vocabulary
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.modalities.text.vocabulary import (
    SPECIALS,
    VOCABULARIES,
    Bytes,
    byte_sign,
    document_of,
)
from sslpipe.recipe import parse_recipe
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack, read_manifest
from sslpipe.shards.make.pools import open_threads
from sslpipe.stream.holdout import held_out
from sslpipe.stream.reader import Sample

SIZES = {"bpe": 330, "wordpiece": 190, "unigram": 120, "bytes": 260}
ODD = (
    "",
    " ",
    "  a  b ",
    "\n\n\tx\r\n",
    "a\0b",
    "é e\u0301 ß İ ﬁ ½",
    "漢字 かな 한국어 🙂🙂🏽‍🚀",
    "<mask><pad></s> <s><extra_id_0> ##a ▁b Ġc",
    "\ufeff\u200b\u2028\U0010ffff",
    "the " * 50,
)
PARTS = ("the", "of", "an", "to", "in", "ba", "ri", "lo", "ken", "mu", "sta", "ver", "ing", "ed")
RECIPE = """
modality: text
stream: {{batch_size: 1, rows: {{packing: {packing}, window: 30}}}}
views: {{tokens: {{ops: [Tokens: {{length: 32, vocabulary: {vocabulary}}}]}}}}
targets: {{mlm: {{view: tokens, task: mlm}}}}
run: {{workers: {workers}, prefetch: 0, threads: 1}}
"""


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(1)
    sizes = np.minimum(1 + rng.lognormal(2, 1, 90).astype(int), 120)
    words = ["".join(rng.choice(PARTS, rng.integers(1, 4))) for _ in range(300)]
    made = {f"d{n:03d}": " ".join(rng.choice(words, size)) for n, size in enumerate(sizes)}
    return made | {"odd": "".join(ODD), "special": ODD[7]}


@pytest.fixture(scope="module")
def packed(documents, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("packed") / "set"
    for key, text in documents.items():
        (folder / f"{key}.txt").write_bytes(text.encode())
    pack(folder, out, PackSettings(codec=TextCodec(), shard_bytes=60_000))
    return out


@pytest.fixture
def shards(packed, tmp_path):
    """A set that may be changed."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


def trained(shards, kind, **settings):
    """The file of a vocabulary, beside the shards."""
    size = settings.pop("size", SIZES[kind])
    made = train_vocabulary(read_manifest(shards), TrainSettings(kind=kind, size=size, **settings))
    file = shards / f"{kind}.json"
    file.write_bytes(made.data)
    return file


def count(shards, file, **settings):
    with open_threads(2) as pool:
        return count_tokens(shards, str(file), pool=pool, **settings)


def load(shards, file, *overrides, packing="best_fit", workers=0):
    text = RECIPE.format(packing=packing, vocabulary=file, workers=workers)
    recipe = parse_recipe(text, path="t.yaml", overrides=overrides)
    return sslpipe.load(recipe, shards=shards, device="cpu")


def test_bpe_loses_nothing(shards):
    vocabulary = open_vocabulary(str(trained(shards, "bpe", sentinels=5)), "t")
    for text in ODD:
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int32
        assert vocabulary.decode(ids) == text
        assert all(int(i) in vocabulary.pieces for i in ids)  # specials spelt out are text
        assert len(ids) <= len(text.encode())
    assert len(vocabulary.encode(ODD[-1])) <= 60  # it did learn


@pytest.mark.parametrize("kind", SIZES)
def test_special_tokens_stand_where_they_are_promised(shards, kind):
    vocabulary = open_vocabulary(str(trained(shards, kind, sentinels=3)), "t")
    names = [vocabulary.tokenizer.id_to_token(place) for place in range(vocabulary.size)]
    assert names[:4] == list(SPECIALS)
    assert names[-3:] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert vocabulary.size == SIZES[kind] + 3
    assert vocabulary.sentinels == 3
    first = 4 if kind in ("bpe", "bytes") else 5  # <unk>
    assert vocabulary.pieces.tolist() == [*range(first, SIZES[kind])]
    assert [vocabulary.pad, vocabulary.begin, vocabulary.end, vocabulary.mask] == [0, 1, 2, 3]
    for text in ODD:
        ids = vocabulary.encode(text)
        assert not np.isin(ids, [0, 1, 2, 3, *range(SIZES[kind], SIZES[kind] + 3)]).any()


def test_a_file_of_bytes_has_the_ids_of_bytes(shards):
    vocabulary = open_vocabulary(str(trained(shards, "bytes", sentinels=2)), "t")
    for text in ODD:
        assert vocabulary.encode(text).tolist() == Bytes().encode(text).tolist()
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_signs_of_bytes_are_those_of_the_library():
    from tokenizers import pre_tokenizers

    assert {byte_sign(value) for value in range(256)} == set(pre_tokenizers.ByteLevel.alphabet())


AGAIN = """
import hashlib, sys
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.shards import read_manifest
for kind, size in zip(sys.argv[2::2], sys.argv[3::2]):
    settings = TrainSettings(kind=kind, size=int(size), sentinels=3)
    print(hashlib.sha256(train_vocabulary(read_manifest(sys.argv[1]), settings).data).hexdigest())
"""


def test_the_same_documents_give_the_same_file_in_any_process(shards):
    """Hashes of the library are seeded anew in each process, so one process proves nothing."""
    files = [trained(shards, kind, sentinels=3).read_bytes() for kind in SIZES]
    words = [str(word) for pair in SIZES.items() for word in pair]
    command = [sys.executable, "-c", AGAIN, str(shards), *words]
    there = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert there == [hashlib.sha256(data).hexdigest() for data in files]


def test_of_much_text_a_sample_is_taken(shards, documents):
    settings = TrainSettings(kind="bpe", size=270, megabytes=0.002)
    first = train_vocabulary(read_manifest(shards), settings)
    total = sum(len(text.encode()) for text in documents.values())
    assert 0.3 * 2000 < first.text_bytes < 2 * 2000 < total
    again = train_vocabulary(read_manifest(shards), settings)
    assert (again.documents, again.data) == (first.documents, first.data)


def test_documents_that_recipes_hold_out_have_no_say(shards, documents):
    """A vocabulary that has seen them would make their bits per byte too few."""
    kept = train_vocabulary(read_manifest(shards), TrainSettings(kind="bpe", size=270, holdout=0.3))
    uids = np.array([sample_id(key) for key in documents], dtype=np.int64)
    kept_apart = held_out(uids, 0.3)
    texts = [
        document_of(text.encode())
        for text, out in zip(documents.values(), kept_apart, strict=True)
        if not out
    ]
    assert 0 < len(texts) < len(documents)
    assert (kept.documents, kept.text_bytes) == (len(texts), sum(len(t.encode()) for t in texts))


def test_wordpiece_and_unigram_do_encode(shards, documents):
    for kind in ("wordpiece", "unigram"):
        vocabulary = open_vocabulary(str(trained(shards, kind)), "t")
        text = documents["d000"]
        assert vocabulary.decode(vocabulary.encode(text)).strip() == text


@pytest.mark.parametrize("packing", ["best_fit", "concat", "one"])
def test_an_epoch_has_every_token_of_every_document_once(shards, documents, packing):
    file = trained(shards, "bpe")
    count(shards, file)
    vocabulary = open_vocabulary(str(file), "t")
    found = []
    with load(shards, file, packing=packing, workers=1 if packing == "concat" else 0) as pipe:
        for _ in range(len(pipe)):
            batch = next(iter(pipe))
            assert batch.epoch == 0
            row, targets = batch.views["tokens"][0, 0], batch.targets["mlm"][0, 0]
            ids = row.where(targets == IGNORED, targets)
            number = batch.segments["tokens"][0, 0]
            found += [tuple(ids[number == n].tolist()) for n in range(int(number.max()) + 1)]
    texts = [document_of(text.encode()) for text in documents.values()]
    wanted = [(*vocabulary.encode(text).tolist(), 2) for text in texts]
    if packing == "one":
        cut = [tuple(ids[:32]) for ids in wanted]
        assert sorted(found) == sorted(cut)
        return
    assert sum(map(len, found)) == sum(map(len, wanted))
    whole = {ids for ids in wanted if len(ids) <= 32}
    if packing == "best_fit":
        assert whole <= set(found)
    ends = sum(ids[-1] == 2 for ids in found)
    assert ends == len(documents)
    tokens = np.bincount(np.concatenate([np.array(ids) for ids in found]), minlength=330)
    assert tokens.tolist() == np.bincount(np.concatenate(wanted), minlength=330).tolist()


def test_a_recipe_of_another_vocabulary_than_was_counted_is_told_the_command(shards):
    first, second = trained(shards, "bpe"), trained(shards, "wordpiece")
    command = rf"run `sslpipe tokenizer count {shards} --tokenizer {first}`"
    with pytest.raises(RecipeError, match=rf"t.yaml.*counted by nothing.*{command}"):
        load(shards, first)
    count(shards, first)
    load(shards, first).close()
    load(shards, "bytes").close()  # whatever was counted
    with pytest.raises(RecipeError, match=r"counted by b2:.*, the recipe's are those of b2:"):
        load(shards, second)


def test_a_changed_file_is_another_stream(shards):
    file = trained(shards, "bpe")
    count(shards, file)
    with load(shards, file) as pipe:
        next(iter(pipe))
        state = pipe.state_dict()
    with load(shards, file) as pipe:
        pipe.load_state_dict(state)
    trained(shards, "bpe", size=320)
    count(shards, file)
    with load(shards, file) as pipe, pytest.raises(StateError, match="vocabulary b2:"):
        pipe.load_state_dict(state)


def test_wrong_counts_are_noticed_either_way(shards, documents):
    vocabulary = open_vocabulary(str(trained(shards, "bpe")), "t")
    decode = TokenDecode(vocabulary, length=8, begin=False, end=True)
    text = documents["d001"]
    right = len(vocabulary.encode(text))

    def sample(tokens):
        return Sample(0, "d001", -1, text.encode(), extent=(len(text), tokens, 0, 0))

    assert decode(sample(right), (0, 0, 0, 3)).data.tolist() == vocabulary.encode(text)[:3].tolist()
    for wrong in (right - 1, right + 1):
        with pytest.raises(SampleError, match=f"has {right + 1} tokens.*promises {wrong + 1};"):
            decode(sample(wrong), (0, 0, 0, 3))
    assert decode(sample(0), ()).extent == (right + 1,)  # no rows: counts are not needed


def test_a_document_in_many_pieces_is_encoded_once(shards, documents, monkeypatch):
    vocabulary = open_vocabulary(str(trained(shards, "bpe")), "t")
    decode = TokenDecode(vocabulary, length=16, begin=False, end=True)
    monkeypatch.setattr(tokens, "RECENT", tokens.RecentIds(20_000))
    key = max(documents, key=lambda key: len(documents[key]))
    ids, calls = vocabulary.encode(documents[key]), []
    count = len(ids) + 1
    monkeypatch.setattr(TrainedVocabulary, "encode", lambda self, text: calls.append(text) or ids)

    def piece(start, text=documents[key]):
        sample = Sample(0, key, -1, text.encode(), extent=(0, count - 1, 0, 0))
        return decode(sample, (0, 0, start, min(16, count - start))).data.tolist()

    found = [token for start in range(0, count, 16) for token in piece(start)]
    assert found == [*ids.tolist(), vocabulary.end]
    assert len(calls) == 1
    for other in range(40):  # more than it keeps
        piece(0, documents[key] + str(other))
    piece(0)
    assert len(calls) == 42


def test_a_vocabulary_goes_to_workers_as_it_was_read(shards):
    file = trained(shards, "bpe")
    vocabulary = open_vocabulary(str(file), "t")
    sent = pickle.dumps(TokenDecode(vocabulary, length=8, begin=False, end=True))
    file.write_text("changed")
    there = pickle.loads(sent).vocabulary
    assert there.fingerprint == vocabulary.fingerprint
    assert there.encode("the of").tolist() == vocabulary.encode("the of").tolist()


def test_workers_encode_without_torch(shards):
    file = trained(shards, "bpe")
    code = (
        "import sys; from sslpipe.modalities.text.trained import open_vocabulary;"
        f"print(len(open_vocabulary({str(file)!r}, 't').encode('the of')), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["2", "False"]


def test_random_tokens_are_pieces_of_text(shards):
    vocabulary = open_vocabulary(str(trained(shards, "unigram", sentinels=4)), "t")
    which = np.linspace(0, 1, 5000, endpoint=False)
    put = replacements(0.0, 1.0, np.zeros(5000), which, vocabulary)
    assert set(put.tolist()) == set(vocabulary.pieces)


def test_random_tokens_are_never_special_ones_of_a_user(shards, tmp_path):
    made = Tokenizer.from_file(str(trained(shards, "bpe")))
    size = made.get_vocab_size()
    made.add_special_tokens(["<tool>", "<eot>"])
    made.add_tokens(["common"])  # found in texts, so it is one of their tokens
    made.save(str(tmp_path / "own.json"))
    vocabulary = open_vocabulary(str(tmp_path / "own.json"), "t")
    assert vocabulary.size == size + 3
    which = np.linspace(0, 1, 20 * vocabulary.size, endpoint=False)
    put = replacements(0.0, 1.0, np.zeros(len(which)), which, vocabulary)
    assert set(put.tolist()) == {*range(4, size), made.token_to_id("common")}


def test_files_that_are_no_vocabulary_are_refused(shards, tmp_path):
    with pytest.raises(
        RecipeError, match=r"'bites': is none of bytes, bytes_t5, and no file seen from /"
    ):
        open_vocabulary("bites", "t.yaml:4")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(RecipeError, match="is no file of the library tokenizers"):
        open_vocabulary(str(tmp_path / "a.json"), "t")
    (tmp_path / "b.json").write_text(Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    with pytest.raises(RecipeError, match=r"id 0 is 'a', which must be '<pad>'"):
        open_vocabulary(str(tmp_path / "b.json"), "t")
    words = dict.fromkeys([*SPECIALS, "<unk>", "a"])
    words = {word: place for place, word in enumerate(words)}
    naive = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # no splitting: `<pad>` is a word
    (tmp_path / "c.json").write_text(naive.to_str())
    with pytest.raises(RecipeError, match=r"'<pad>' in a text becomes the special token 0"):
        open_vocabulary(str(tmp_path / "c.json"), "t")


def test_bytes_say_what_a_vocabulary_says():
    assert VOCABULARIES["bytes"].pieces.tolist() == [*range(4, 260)]
    assert TrainedVocabulary("t", b"x").fingerprint != TrainedVocabulary("t", b"y").fingerprint


def test_ids_that_leave_some_out_are_refused(tmp_path):
    """Naive error: as many tokens as two bytes hold, but an id that they do not."""
    vocabulary = {**{name: n for n, name in enumerate(SPECIALS)}, "a": 4, "b": 70_000}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Punctuation()
    made.save(str(tmp_path / "holes.json"))
    with pytest.raises(RecipeError, match=r"its 6 tokens have 6 ids up to 70,000; .* 0 to 5;"):
        open_vocabulary(str(tmp_path / "holes.json"), "t")


def words_file(path, names, **model):
    """A file of whole words, split at blanks and signs."""
    made = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, **model))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    made.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("names", "model", "match"),
    [
        ([*SPECIALS, "<unk>"], {"unk_token": "<unk>"}, "all of its 5 tokens are special"),
        ([*SPECIALS, "a", "<unk>"], {"unk_token": "<unk>"}, "id 4 is 'a', which must be '<unk>'"),
        ([*SPECIALS, "a"], {}, "text '<pad>': has what its vocabulary has no token for"),
    ],
)
def test_a_vocabulary_without_pieces_or_unknown_is_refused(tmp_path, names, model, match):
    """Naive error: a random token of no pieces is the id behind the last one."""
    with pytest.raises(RecipeError, match=match):
        open_vocabulary(words_file(tmp_path / "w.json", names, **model), "t")


def test_a_text_that_has_no_tokens_is_a_bad_sample(tmp_path):
    made = Tokenizer(models.WordPiece({name: n for n, name in enumerate(SPECIALS)}))
    made.save(str(tmp_path / "w.json"))
    with pytest.raises(SampleError, match="has what its vocabulary has no token for"):
        TrainedVocabulary("t", (tmp_path / "w.json").read_bytes()).encode("a")


def test_dropout_of_merges_in_a_file_does_not_count(shards):
    """Else the tokens of a document would not be those that were counted."""
    plain = trained(shards, "bpe")
    dropped = json.loads(plain.read_text())
    dropped["model"]["dropout"] = 0.5
    found = TrainedVocabulary("t", json.dumps(dropped).encode())
    text = "of the baring lomu " * 20
    wanted = open_vocabulary(str(plain), "t").encode(text)
    assert all(np.array_equal(found.encode(text), wanted) for _ in range(5))
