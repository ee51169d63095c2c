"""tiktoken encodes as `tokenizers` does, is refused where it might not, and is given up if not."""

import json
import logging
import sys
from itertools import product

import numpy as np
import pytest
from tokenizers import Tokenizer

from sslpipe.modalities.text.fast_bpe import (
    AWKWARD,
    CHECKED,
    FastBytePairs,
    fast_encoder,
    joins_its_own,
    parts_of,
    ranks_of,
)
from sslpipe.modalities.text.trained import TrainedVocabulary
from sslpipe.modalities.text.training import byte_pairs, single_bytes, word_pieces

ALPHABET = "aeinrst 'AÉé\u0301漢字🙂\n\t\r09²,.<>_\u2028\xa0\0\ufeffǅ"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeinrst"), rng.integers(1, 8))) for _ in range(300)]
    return [" ".join(rng.choice(words, 40)) for _ in range(150)]


@pytest.fixture(scope="module")
def vocabulary(texts):
    return TrainedVocabulary("v", byte_pairs([*texts, *AWKWARD], 700).to_str().encode())


def test_ids_are_those_of_tokenizers(vocabulary, texts):
    rng = np.random.default_rng(1)
    random = ["".join(rng.choice(list(ALPHABET), n)) for n in rng.integers(0, 200, 300)]
    odd = [" " * (1_000_000) + "a", "a" * 30_000, "", "<s>", "'" * 50, "don't\r\n\r\n 's"]
    encode = vocabulary.encoder
    assert isinstance(encode, FastBytePairs)
    for text in [*texts, *AWKWARD, *random, *odd]:
        found = encode(text)
        assert found.dtype == np.int32
        assert np.array_equal(found, vocabulary.encode_slowly(text)), text[:50]
        assert vocabulary.decode(found) == text
    assert encode.agrees


def test_blanks_before_words_are_split_as_by_tokenizers(vocabulary):
    """All runs of up to four signs that hold what Unicode, or Python alone, calls a blank."""
    signs = [c for c in map(chr, range(0x110000)) if c.isspace()]
    assert {"\x1c", "\x85", "\u3000"} < {*signs}
    runs = ["".join(run) for run in product([*" \n\x1ca9.", "\u2003"], repeat=4)]
    text = "".join(f"a{run}b" for run in runs)
    text += "".join(f"a{a}{b}b {a}{b}9 {b} {a}." for a, b in product(signs, repeat=2))
    encode = vocabulary.encoder
    for at in range(0, len(text), 6000):
        part = text[at : at + 6000]
        assert np.array_equal(encode.found(part), vocabulary.encode_slowly(part)), at
        assert "".join(parts_of(part)) == part


def test_every_sign_of_unicode_falls_into_the_same_words(vocabulary):
    encode = vocabulary.encoder
    signs = [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000][::7]
    text = "".join(f"a{sign}{sign} 1{sign}!{sign} " for sign in signs)
    for at in range(0, len(text), 5000):
        part = text[at : at + 5000]
        assert np.array_equal(encode(part), vocabulary.encode_slowly(part)), at


def test_without_tiktoken_ids_are_the_same(vocabulary, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    plain = TrainedVocabulary("v", vocabulary.data)
    assert plain.encoder == plain.encode_slowly
    for text in [*texts[:20], *AWKWARD]:
        assert np.array_equal(plain.encode(text), vocabulary.encode(text))


@pytest.mark.parametrize("kind", [word_pieces, single_bytes])
def test_what_is_no_bpe_of_words_is_left_to_tokenizers(kind, texts):
    made = TrainedVocabulary("v", kind(texts, 300).to_str().encode())
    assert made.encoder == made.encode_slowly


def test_added_tokens_are_left_to_tokenizers(vocabulary):
    """They are found in texts before words are; in most texts there are none."""
    tokenizer = Tokenizer.from_buffer(vocabulary.data)
    tokenizer.add_tokens(["<|user|>"])
    added = TrainedVocabulary("v", tokenizer.to_str().encode())
    assert added.encode("a <|user|>")[-1] == added.size - 1
    assert fast_encoder(added.tokenizer, added.encode_slowly, "v") is None
    tokenizer = Tokenizer.from_buffer(vocabulary.data)
    tokenizer.add_special_tokens(["<|end|>"])
    special = TrainedVocabulary("v", tokenizer.to_str().encode())
    assert isinstance(special.encoder, FastBytePairs)
    assert np.array_equal(special.encode("a <|end|>"), special.encode_slowly("a <|end|>"))


def document(vocabulary):
    return json.loads(vocabulary.data)


def test_a_token_that_letters_do_not_reach_is_refused(vocabulary):
    """`abc` of (ab, c), where (b, c) is joined first: only a library that joins any pair has it."""
    from tokenizers import Tokenizer

    made = document(vocabulary)
    model = made["model"]
    first = 4 + 256
    model["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    model["vocab"] = {t: n for t, n in model["vocab"].items() if n < first}
    model["vocab"] |= {"bc": first, "ab": first + 1, "abc": first + 2}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    assert ranks_of(model)
    assert not joins_its_own(tokenizer.model, model)
    changed = TrainedVocabulary("v", json.dumps(made).encode())
    assert changed.encoder == changed.encode_slowly
    assert changed.encode("abc").tolist() == [model["vocab"]["a"], first]  # tiktoken has one id


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["model"].update(unk_token="<pad>"),
        lambda made: made["model"]["merges"].reverse(),
        lambda made: made.update(normalizer={"type": "NFC"}),
        lambda made: made["pre_tokenizer"].update(add_prefix_space=True),
    ],
)
def test_files_of_another_kind_are_refused(vocabulary, change):
    made = document(vocabulary)
    change(made)
    changed = TrainedVocabulary("v", json.dumps(made).encode())
    assert changed.encoder == changed.encode_slowly


def test_the_first_difference_ends_it_and_is_told(vocabulary, caplog):
    encode = fast_encoder(vocabulary.tokenizer, vocabulary.encode_slowly, "v.json")
    real = encode._fast

    class Other:
        def encode_to_numpy(self, text, **how):
            return real.encode_to_numpy(text.replace("rest", "nest"), **how)

    encode._fast = Other()
    for _ in range(CHECKED - 1):
        encode("a test")
    with caplog.at_level(logging.WARNING):
        found = encode("the rest")
    assert np.array_equal(found, vocabulary.encode_slowly("the rest"))
    assert "v.json: tiktoken gives other ids than tokenizers for 'the rest'" in caplog.text
    assert np.array_equal(encode("rest"), vocabulary.encode_slowly("rest"))
    assert not encode.agrees
