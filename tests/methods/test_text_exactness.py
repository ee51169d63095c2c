"""In float64: no document touches another, packed is unpacked, and 1 x 8 rows are 4 x 2 rows."""

from dataclasses import replace

import pytest
import torch

from sslpipe.batch import IGNORED, ViewSpec
from sslpipe.encoders.t5 import T5
from sslpipe.encoders.text import BERT, GPT
from sslpipe.methods.parts.tokens import MaskedTokenHead
from sslpipe.train.accumulation import detached, divide_by_weights, loss_share, step_batches

from .every_method import LENGTH, TEXT, VOCABULARY, WRITTEN, build, make_batch, make_spec

VIEW = ViewSpec("tokens", 1, "L", (24,), torch.int64, vocabulary=40)
SIZES = {"dim": 16, "depth": 2, "heads": 2}
ENCODERS = {
    "gpt": lambda: GPT(VIEW, **SIZES),
    "bert": lambda: BERT(VIEW, **SIZES),
    "bert, narrow": lambda: BERT(VIEW, **SIZES, embedding=8),
    "t5": lambda: T5(VIEW, **SIZES),
}
FIRST, SECOND = 9, 11  # tokens of two documents; four of padding


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param]().double()


def packed():
    """A row of two documents that have no id in common, and padding."""
    tokens = torch.cat(
        [torch.arange(4, 13), torch.arange(20, 31), torch.zeros(4, dtype=torch.int64)]
    )
    documents = torch.tensor([0] * FIRST + [1] * SECOND + [-1] * 4)
    places = torch.cat([torch.arange(n) for n in (FIRST, SECOND, 4)])
    return tokens[None], torch.stack([documents, places])[:, None]


def states(encoder, tokens, segments):
    """What an output layer reads: of T5 the decoder's states, which read the encoder's."""
    found = encoder.hidden(tokens, segments)
    if isinstance(encoder, T5):
        return encoder.written(tokens, segments[0], found, segments[0])
    return found


def logits(encoder, tokens, segments):
    found = states(encoder, tokens, segments)
    if not isinstance(encoder, BERT):
        return found @ encoder.word.weight.T
    torch.manual_seed(1)
    head = MaskedTokenHead(encoder.dim, encoder.word).double()
    return head(found, encoder.word.weight)


def test_a_perturbed_document_moves_no_logit_of_another(encoder):
    tokens, segments = packed()
    other = tokens.clone()
    other[0, 3] = 15
    before, after = logits(encoder, tokens, segments)[0], logits(encoder, other, segments)[0]
    torch.testing.assert_close(after[FIRST:20], before[FIRST:20], rtol=0, atol=1e-6)
    assert (after[3] - before[3]).abs().max() > 1e-3
    other = tokens.clone()
    other[0, 12] = 16
    after = logits(encoder, other, segments)[0]
    torch.testing.assert_close(after[:FIRST], before[:FIRST], rtol=0, atol=1e-6)


def test_no_gradient_of_one_document_reaches_the_embeddings_of_another(encoder):
    tokens, segments = packed()
    # of the states: the output layer is tied, so logits of all ids have gradients in all rows
    states(encoder, tokens, segments)[0, FIRST:20].square().sum().backward()
    gradient = encoder.word.weight.grad
    assert (gradient[4:13] == 0).all()
    assert (gradient[20:31].abs().amax(1) > 0).all()


def test_packed_logits_are_unpacked_logits(encoder):
    tokens, segments = packed()
    together = logits(encoder, tokens, segments)[0]
    for start, end in ((0, FIRST), (FIRST, 20)):
        alone = logits(encoder, tokens[:, start:end], segments[:, :, start:end])
        torch.testing.assert_close(together[start:end], alone[0], rtol=0, atol=1e-12)


# --- accumulation

REAL = (4, 4, 12, 4, 12, 12, 8, 4)  # tokens of each row: two rows have 8, 16, 24, 12
METHODS = ("causal_lm", "mlm", "t5", "electra", "nsp", "sop")


def unequal():
    """Eight rows of very unequal lengths, shares that are hidden, and pairs that have a class."""
    batch, real = make_batch(8), torch.tensor(REAL)[:, None]
    generator = torch.Generator().manual_seed(1)
    places = torch.arange(LENGTH).expand(8, -1)
    documents = torch.where(places < real, (places >= real // 2).long(), -1)
    tokens = torch.randint(4, VOCABULARY, (8, LENGTH), generator=generator)
    hidden = (places % torch.tensor([2, 4, 4, 3, 12, 4, 2, 2])[:, None] == 1) & (places < real)
    classes = torch.tensor([[0, 1, IGNORED, 1, IGNORED, IGNORED, 1, 0]])
    written = torch.where(torch.arange(WRITTEN) < real // 4 + 1, 0, -1).expand(8, -1)
    answers = torch.randint(4, VOCABULARY, (8, WRITTEN), generator=generator)
    first = torch.where(documents == 0, 0, real // 2)
    targets = {
        "mlm": torch.where(hidden, tokens, IGNORED)[None],
        "t5": torch.where(written >= 0, answers, IGNORED)[None],
        "nsp": classes,
        "sop": classes,
    }
    seen = torch.where(hidden, 3, tokens).masked_fill(documents < 0, 0)
    return replace(
        batch,
        views=batch.views | {"tokens": seen[None]},
        segments={
            "tokens": torch.stack([documents, (places - first).clamp_min(0)]),
            "t5": torch.stack([written, torch.arange(WRITTEN).expand(8, -1)]),
        },
        targets=batch.targets | targets,
        hidden=batch.hidden | {n: (targets[n] != IGNORED).sum(-1).numpy() for n in ("mlm", "t5")},
    )


def rows(batch, start, end):
    """A part of a batch."""
    text = {n: batch.targets[n][:, start:end] for n in ("mlm", "t5", "nsp", "sop")}
    return replace(
        batch,
        views={"tokens": batch.views["tokens"][:, start:end]},
        segments={name: x[:, start:end] for name, x in batch.segments.items()},
        targets=text,
        hidden={name: batch.hidden[name][:, start:end] for name in ("mlm", "t5")},
    )


def gradients(method, parts):
    """Of one optimizer step, as the loop weighs its batches."""
    method.zero_grad()
    taken, totals = step_batches(method, iter(parts), len(parts))
    outputs = []
    for part in taken:
        output = method(part)
        loss_share(output, [*outputs, output], len(parts), totals).backward()
        outputs.append(detached(output))
    if totals is None:
        divide_by_weights(method, outputs)
    return [p.grad for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", METHODS)
def test_one_batch_of_eight_rows_is_four_of_two(name, monkeypatch):
    """ELECTRA: with guesses that no order of draws changes."""
    monkeypatch.setattr("sslpipe.methods.electra.sampled", lambda logits: logits.argmax(1))
    torch.manual_seed(0)
    spec = make_spec(8)
    encoder = TEXT[name](spec.views["tokens"], dim=16, depth=2, heads=2)
    method, batch = build(name, spec, encoder).double(), unequal()
    whole = gradients(method, [rows(batch, 0, 8)])
    parts = [rows(batch, start, start + 2) for start in range(0, 8, 2)]
    weights = torch.stack([method(part).weight for part in parts])
    assert all(len({*column.tolist()}) > 1 for column in weights.view(4, -1).T)
    if weights.ndim == 2:  # no term has the weights of the other
        assert len({(a / b).item() for a, b in weights.clamp_min(0.5)}) > 1
    torch.testing.assert_close(gradients(method, parts), whole, rtol=0, atol=1e-10)
    means = gradients_of_means(method, parts)
    assert max((a - b).abs().max() for a, b in zip(means, whole, strict=True)) > 1e-4


@pytest.mark.parametrize("name", ["electra", "nsp", "sop"])
def test_terms_add_up_to_the_loss_and_their_weights_are_told_beforehand(name):
    spec, batch = make_spec(8), unequal()
    method = build(name, spec, TEXT[name](spec.views["tokens"], dim=16, depth=2, heads=2))
    output = method(rows(batch, 0, 8))
    torch.testing.assert_close(output.terms.sum(), output.loss)
    assert torch.equal(output.weight, method.term_weights(rows(batch, 0, 8)))
    assert output.weight.tolist()[0] == (batch.targets["mlm"] != IGNORED).sum()
    second = 60 if name == "electra" else 5  # real tokens; rows that have a class
    assert output.weight.tolist()[1] == second


def gradients_of_means(method, parts):
    """The naive error: each batch weighs alike."""
    method.zero_grad()
    for part in parts:
        (method(part).loss / len(parts)).backward()
    return [p.grad for p in method.parameters() if p.grad is not None]
