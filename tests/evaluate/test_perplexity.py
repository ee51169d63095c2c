"""How well tokens are guessed, against slow loops over documents; and what eval says of text."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sslpipe.errors import RecipeError, SslpipeError, StateError
from sslpipe.evaluate import EvalSettings, command, evaluate, open_subject
from sslpipe.evaluate.document_nats import (
    DocumentSizes,
    bits_per_byte,
    by_document,
    row_nats,
    unigram_entropy,
)
from sslpipe.evaluate.encoding import TokenCounts
from sslpipe.evaluate.perplexity import perplexity
from sslpipe.evaluate.protocols import chosen_protocols
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.counting import count_tokens
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.pipeline import load
from sslpipe.recipe import parse_recipe
from sslpipe.report import write_report
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, open_threads, pack, read_manifest
from sslpipe.stream.holdout import held_out
from sslpipe.train.checkpoint import read_checkpoint
from sslpipe.train.loop import train_recipe
from sslpipe.train.run import initial_method

CPU = torch.device("cpu")
LENGTH = 16
RECIPES = {
    "causal_lm": "gpt",
    "mlm": "bert",
    "t5": "t5",
}
RECIPE = """
modality: text
stream: {batch_size: 8, seed: 3, rows: {packing: best_fit, window: 30}, holdout: {fraction: 0.3}}
views: {tokens: {ops: [Tokens: {length: LENGTH, vocabulary: VOCABULARY, begin: BEGIN, end: END}]}}
TARGETS
method: METHOD
train:
  epochs: 1
  backbone: {BACKBONE: {dim: 16, depth: 1, heads: 2}}
  optimizer: {adamw: {lr: 0.01}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


def recipe_of(method, *, begin=False, vocabulary="bytes", length=LENGTH):
    targets = (
        "" if method == "causal_lm" else f"targets: {{{method}: {{view: tokens, task: {method}}}}}"
    )
    text = RECIPE.replace("TARGETS", targets).replace("METHOD", method)
    text = text.replace("BACKBONE", RECIPES[method]).replace("VOCABULARY", vocabulary)
    text = text.replace("BEGIN", str(begin).lower()).replace("LENGTH", str(length))
    text = text.replace("END", str(method != "t5").lower())  # T5 ends its rows itself
    return parse_recipe(text, path="t.yaml")


@pytest.fixture(scope="module")
def documents():
    """Key -> text of two kinds, with signs of several bytes; one is a single byte."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(1 + rng.lognormal(3, 1, 40).astype(int), 120)
    sizes[0] = 1
    letters = [list("abé d"), list("xy zw")]
    return {
        f"{number % 2}/doc{number:02d}": "".join(rng.choice(letters[number % 2], size))
        for number, size in enumerate(sizes)
    }


@pytest.fixture(scope="module")
def shards(documents, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("shards") / "text"
    for key, text in documents.items():
        path = folder / f"{key}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    pack(folder, out, PackSettings(codec=TextCodec(), shard_bytes=20_000))
    return out


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """Method -> the folder of a run of some steps, made once."""
    made = {}

    def trained(method, **settings):
        key = (method, *settings.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / method
            train_recipe(
                recipe_of(method, **settings), shards=shards, out=made[key], resume=False,
                max_steps=5, device="cpu",
            )  # fmt: skip
        return made[key]

    return trained


def values(measures):
    return {measure.name: measure.value for measure in measures}


# --- pure functions


def test_nats_of_rows_are_those_of_a_loop():
    torch.manual_seed(0)
    logits, targets = torch.randn(12, 5), torch.randint(0, 5, (12,))
    targets[[0, 5, 6, 7, 8]] = -100
    nats, asked = row_nats(logits, targets, 3)
    for row in range(3):
        found = [
            -math.log(math.exp(x[t]) / sum(math.exp(y) for y in x))
            for x, t in zip(
                logits[4 * row : 4 * row + 4].tolist(), targets[4 * row : 4 * row + 4].tolist(),
                strict=True,
            )
            if t != -100
        ]  # fmt: skip
        assert asked[row] == len(found)
        assert nats[row].item() == pytest.approx(sum(found), rel=1e-6)


def test_unigram_entropy_is_scipys():
    counts = torch.tensor([3, 0, 5, 1, 0])
    assert unigram_entropy(counts) == pytest.approx(entropy([3, 5, 1]))
    assert unigram_entropy(torch.tensor([7, 7])) == pytest.approx(math.log(2))
    assert unigram_entropy(torch.tensor([0, 4])) == 0


def test_rows_of_a_document_are_added_in_any_order():
    uids = torch.tensor([5, -1, 5, 7, -1])
    nats, asked = torch.tensor([1.0, 2, 4, 0, 16]).double(), torch.tensor([1, 1, 3, 0, 4])
    found = by_document(uids, nats, asked)
    assert found.uids_D.tolist() == [-1, 5, 7]
    assert found.nats_D.tolist() == [18, 5, 0]
    assert found.asked_D.tolist() == [5, 4, 0]
    assert found.per_token == pytest.approx(23 / 9)  # of tokens, not of documents
    assert found.means().tolist() == pytest.approx([18 / 5, 5 / 4])
    turned = by_document(uids.flip(0), nats.flip(0), asked.flip(0))
    assert turned.nats_D.equal(found.nats_D)


def test_bits_per_byte_are_nats_a_token_by_bytes_a_token():
    found = by_document(
        torch.tensor([1, 2]), torch.tensor([6.0, 2.0]).double(), torch.tensor([3, 1])
    )
    sizes = DocumentSizes(torch.tensor([4, 2]), torch.tensor([12, 2]))
    whole, each = bits_per_byte(found, sizes)
    assert whole == pytest.approx(2 / math.log(2) * 6 / 14)
    assert each.tolist() == pytest.approx([2 / math.log(2) * 4 / 12, 2 / math.log(2)])


def test_counts_of_tokens_are_a_histogram_without_padding():
    tokens = torch.tensor([[5, 5, 7, 0, 0], [9, 5, 9, 9, 7]])
    expected = np.stack([np.bincount(row[row > 0], minlength=10) for row in tokens.numpy()])
    assert TokenCounts(10)(tokens).numpy() == pytest.approx(np.log1p(expected))
    shuffled = tokens[:, torch.tensor([4, 2, 0, 1, 3])]
    assert TokenCounts(10)(shuffled).equal(TokenCounts(10)(tokens))
    assert TokenCounts(100_000)(tokens).shape == (2, 4096)


# --- runs


def slow_document(method, text, *, begin):
    """Nats of each token of a document but its first, window by window, one token at a time."""
    vocabulary = Bytes()
    ids = [*[vocabulary.begin] * begin, *vocabulary.encode(text).tolist(), vocabulary.end]
    found = []
    for place in range(1, len(ids)):
        first = (place - 1) // (LENGTH - 1) * (LENGTH - 1)  # of the piece that asks for it
        before = torch.tensor([ids[first:place]])
        segments = torch.stack([torch.zeros_like(before), torch.arange(before.shape[1])[None]])
        states = method.encoder.hidden(before, segments)[0, -1]
        logits = states @ method.encoder.word.weight.T
        found.append(-logits.log_softmax(0)[ids[place]].item())
    return found


@pytest.mark.parametrize("begin", [False, True])
def test_a_causal_model_is_asked_for_every_token_once(documents, shards, run, begin):
    folder = run("causal_lm", begin=begin)
    subject = open_subject(folder)
    found = perplexity(subject, shards, device=CPU)
    held = [k for k in documents if held_out(np.array([sample_id(k)]), 0.3)[0]]
    assert 3 < len(held) < 25
    recipe = recipe_of("causal_lm", begin=begin)
    with load(recipe, shards=shards, device="cpu") as pipe:
        methods = {name: initial_method(recipe, pipe.spec) for name in ("trained", "untrained")}
    methods["trained"].load_state_dict(read_checkpoint(folder / "last.pt").method)
    for name, method in methods.items():
        with torch.no_grad():
            slow = [slow_document(method.eval(), documents[key], begin=begin) for key in held]
        nats, got = np.concatenate(slow), values(found[name])
        assert got["nats per token"] == pytest.approx(nats.mean(), rel=1e-5)
        assert got["perplexity per token"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
        sizes = [len(documents[key].encode()) for key in held]
        tokens = sum(sizes) + len(held)  # and the end
        bits = nats.mean() / math.log(2) * tokens / sum(sizes)
        assert got["bits per byte"] == pytest.approx(bits, rel=1e-5)
        each = [
            np.mean(one) / math.log(2) * (size + 1) / size
            for one, size in zip(slow, sizes, strict=True)
        ]
        for q in (0.1, 0.5, 0.9):
            name_of = f"bits per byte, {q:.0%} of documents below"
            assert got[name_of] == pytest.approx(np.quantile(each, q), rel=1e-5)
    protocol = found["trained"][0].protocol
    assert f"{len(held)} of {len(documents)} documents (held_out" in protocol
    assert f"{len(nats)} tokens" in protocol
    ids = [[*Bytes().encode(documents[key]).tolist(), Bytes().end] for key in held]
    asked = np.concatenate([one if begin else one[1:] for one in ids])
    chance = entropy(np.unique(asked, return_counts=True)[1])
    assert found["trained"][0].chance == pytest.approx(chance)


@pytest.mark.parametrize("method", ["mlm", "t5"])
def test_masks_are_keyed_and_all_pieces_are_asked(shards, run, method, monkeypatch):
    vocabulary = "bytes_t5" if method == "t5" else "bytes"
    subject = open_subject(run(method, vocabulary=vocabulary))
    first = perplexity(subject, shards, device=CPU)
    monkeypatch.setattr("sslpipe.evaluate.perplexity.ROWS", 5)
    second = perplexity(subject, shards, device=CPU)
    assert [m.name for m in first["trained"]] == [m.name for m in second["trained"]]
    for name in ("trained", "untrained"):
        for a, b in zip(first[name], second[name], strict=True):
            assert a.value == pytest.approx(b.value, rel=1e-5)
            assert a.chance == b.chance
    asked_for = {"mlm": "masked token", "t5": "target token"}[method]
    assert first["trained"][0].name == f"nats per {asked_for}"
    assert not any("byte" in measure.name for measure in first["trained"])


def test_parts_are_apart_and_together_are_all(shards, run):
    subject = open_subject(run("causal_lm", begin=False))
    said = {
        part: perplexity(subject, shards, device=CPU, part=part, untrained=False)["trained"][0]
        for part in ("train", "held_out", "all")
    }
    tokens = {
        part: int(m.protocol.split("; ")[-3].split()[0].replace(",", ""))
        for part, m in said.items()
    }
    assert tokens["train"] + tokens["held_out"] == tokens["all"]
    total = sum(said[part].value * tokens[part] for part in ("train", "held_out"))
    assert said["all"].value == pytest.approx(total / tokens["all"], rel=1e-5)
    assert "which the run was trained on" in said["train"].protocol
    assert "trained on" not in said["held_out"].protocol


def test_what_has_no_such_part_or_guesses_nothing_is_refused(shards, run):
    subject = open_subject(run("causal_lm", begin=False))
    recipe = subject.recipe
    stream = recipe.stream.model_copy(update={"holdout": None})
    whole = replace(subject, recipe=recipe.model_copy(update={"stream": stream}))
    with pytest.raises(SslpipeError, match=r"--part held_out: .* has no stream\.holdout"):
        perplexity(whole, shards, device=CPU, part="held_out")
    with pytest.raises(SslpipeError, match="is no run of a method that guesses tokens"):
        perplexity(replace(subject, checkpoint=None), shards, device=CPU)


def test_what_cannot_be_measured_is_told_before_any_document_is_encoded(
    shards, run, tmp_path, monkeypatch
):
    def encoded(*_, **__):
        raise AssertionError("documents are encoded")

    monkeypatch.setattr(command, "cached_features", encoded)
    made = run("causal_lm", begin=False)
    towers = EvalSettings(protocols=("zero_shot",), cache=tmp_path)
    with pytest.raises(SslpipeError, match=r"last\.pt: its method, causal_lm, has no text tower"):
        evaluate(made, shards, settings=towers)
    recipe = open_subject(made).recipe
    stream = recipe.stream.model_copy(update={"holdout": None})
    bare = replace(open_subject(made), recipe=recipe.model_copy(update={"stream": stream}))
    monkeypatch.setattr(command, "open_subject", lambda *_: bare)
    asked = EvalSettings(protocols=("perplexity",), cache=tmp_path, part="held_out")
    with pytest.raises(SslpipeError, match=r"has no stream\.holdout"):
        evaluate(made, shards, settings=asked)
    monkeypatch.setattr(command, "open_subject", lambda *_: replace(bare, checkpoint=None))
    with pytest.raises(SslpipeError, match="is no run of a method that guesses tokens"):
        evaluate(made, shards, settings=replace(asked, part=None))


def test_documents_that_are_asked_for_nothing_are_an_error(run, tmp_path):
    """Of a single byte, with nothing around it, there is nothing to be guessed."""
    (tmp_path / "docs").mkdir()
    for letter in "abc":
        (tmp_path / "docs" / f"{letter}.txt").write_text(letter)
    pack(tmp_path / "docs", tmp_path / "set", PackSettings(codec=TextCodec()))
    subject = open_subject(run("causal_lm", begin=False))
    view = subject.recipe.views["tokens"]
    op = replace(view.ops[0], settings={**view.ops[0].settings, "end": False})
    views = {"tokens": view.model_copy(update={"ops": (op,)})}
    bare = replace(subject, recipe=subject.recipe.model_copy(update={"views": views}))
    with pytest.raises(SslpipeError, match=r"no token is asked for in its documents"):
        perplexity(bare, tmp_path / "set", device=CPU, part="all", untrained=False)


def test_a_vocabulary_that_changed_is_an_error(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = shutil.copytree(shards, tmp_path / "texts")
    first, other = (
        train_vocabulary(read_manifest(texts), TrainSettings(kind="bpe", size=size)).data
        for size in (270, 280)
    )
    Path("words.json").write_bytes(first)
    with open_threads(1) as pool:
        count_tokens(texts, "words.json", pool=pool)
    train_recipe(
        recipe_of("causal_lm", vocabulary="words.json"), shards=texts, out=tmp_path / "run",
        resume=False, max_steps=2, device="cpu",
    )  # fmt: skip
    subject = open_subject("run")
    assert perplexity(subject, texts, device=CPU)["trained"][0].value > 0
    Path("words.json").write_bytes(other)
    with pytest.raises(StateError, match=r"was trained with vocabulary .* has vocabulary .* now"):
        open_subject("run")
    Path("words.json").unlink()
    with pytest.raises(RecipeError, match=r"words\.json"):
        open_subject("run")


# --- eval and its page


def test_documents_without_labels_are_measured_by_their_tokens(run, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text("ab" * (number + 3))
    out = tmp_path / "bare_shards"
    pack(folder, out, PackSettings(codec=TextCodec()))
    settings = EvalSettings(device="cpu", cache=tmp_path / "cache", part="all")
    found = evaluate(run("causal_lm", begin=False), out, settings=settings)
    assert found.measures["trained"][0].name == "nats per token"
    assert {"knn", "linear"} <= set(found.skipped)
    page = write_report([found], tmp_path / "report").read_text()
    assert "abababab" in page
    assert "Worse than chance" in page  # less is better, and two letters are half a code


def test_a_page_of_documents_with_labels(shards, run, tmp_path):
    folder = run("causal_lm", begin=False)
    settings = EvalSettings(("perplexity", "knn"), device="cpu", cache=tmp_path / "cache")
    found = evaluate(folder, shards, settings=settings)
    assert set(found.measures) == {"trained", "untrained", "counts"}
    counts = values(found.measures["counts"])
    assert counts["knn10 top-1"] > 0.9  # the classes have different letters
    page = write_report([found], tmp_path / "report").read_text()
    assert "token counts" in page
    assert "Guessed tokens" in page
    assert 'class="words"' in page
    assert "raw pixels" not in page


def test_perplexity_is_a_protocol_by_its_name():
    assert chosen_protocols(["knn", "perplexity"]) == ("perplexity", "knn")


def test_features_that_no_protocol_reads_are_not_made(shards, run, tmp_path, monkeypatch):
    def no_features(*args, **kwargs):
        raise AssertionError("features were made")

    folder = run("causal_lm", begin=False)
    settings = EvalSettings(("perplexity",), device="cpu", cache=tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(command, "cached_features", no_features)
        found = evaluate(folder, shards, shards, settings)
        command.encode(folder, shards, shards, settings)
    assert not (tmp_path / "cache").exists()
    assert (found.features, found.tested) == ({}, {})
    assert found.measures["trained"][0].name == "nats per token"
    with pytest.raises(SslpipeError, match="report"):
        write_report([found], tmp_path / "report")
    whole = evaluate(folder, shards, settings=replace(settings, report=True))
    assert whole.features["trained"].features.shape[0] > 0
    assert whole.measures["trained"] == evaluate(folder, shards, None, settings).measures["trained"]
