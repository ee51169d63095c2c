"""Methods on text against slow loops, and the errors that are easily made with rows of tokens."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslpipe.batch import IGNORED, ViewSpec
from sslpipe.encoders.text import BERT, GPT
from sslpipe.errors import ContractError, RecipeError
from sslpipe.methods.electra import replaced_loss, sampled
from sslpipe.methods.parts.tokens import chosen_tokens, mean_over_tokens, states_at
from sslpipe.methods.simcse import simcse_loss
from sslpipe.methods.t5 import shifted
from sslpipe.train.world import keyed

from .every_method import build, make_batch, make_spec


def made(name, size=4, seed=0, **settings):
    torch.manual_seed(seed)
    return build(name, make_spec(size), **settings), make_batch(size)


# --- masked tokens


def test_mlm_is_a_loop_over_hidden_tokens():
    method, batch = made("mlm")
    tokens, targets = batch.views["tokens"][0], batch.targets["mlm"][0]
    states = method.encoder.hidden(tokens, batch.segments["tokens"])
    losses, right = [], []
    for row in range(len(tokens)):
        for place in range(tokens.shape[1]):
            if targets[row, place] != IGNORED:
                logits = method.head(states[row, place][None], method.encoder.word.weight)[0]
                losses.append(-logits.log_softmax(0)[targets[row, place]])
                right.append(logits.argmax() == targets[row, place])
    output = method(batch)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    assert output.weight == len(losses) == 1 + 2 + 3 + 4
    assert output.metrics["accuracy"] == torch.stack(right).float().mean()


def test_a_mean_of_rows_means_is_another():
    """Naive errors: rows weigh alike; all places count, zeros where none is asked for."""
    method, batch = made("mlm")
    targets = batch.targets["mlm"][0]
    states = method.encoder.hidden(batch.views["tokens"][0], batch.segments["tokens"])
    logits = method.head(states.flatten(0, 1), method.encoder.word.weight).unflatten(0, (4, -1))
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = method(batch).loss
    torch.testing.assert_close(loss, each.sum() / 10)
    assert abs(each.mean() - loss) > 0.1
    rows = (each.sum(1) / torch.arange(1, 5)).mean()
    assert abs(rows - loss) > 1e-3


@pytest.mark.parametrize("name", ["nsp", "sop"])
def test_a_head_beside_mlm_adds_the_loss_of_its_rows(name):
    """By the trained classes alone: the last of four rows of sop has none."""
    method, batch = made(name)
    states = method.encoder.hidden(batch.views["tokens"][0], batch.segments["tokens"])
    alone = method.judged(method.guessed(states, batch), batch)
    classes, losses, right = batch.targets[name][0], [], []
    for state, label in zip(states, classes.tolist(), strict=True):
        if label != IGNORED:
            logits = method.pairs.classes(torch.tanh(method.pairs.pooler(state[0])))
            losses.append(-logits.log_softmax(0)[label])
            right.append(float(logits.argmax() == label))
    assert len(losses) == (4 if name == "nsp" else 3)
    output, weight = method(batch), 0.5 if name == "nsp" else 1.0
    torch.testing.assert_close(output.loss, alone.loss + weight * torch.stack(losses).mean())
    assert output.weight.tolist() == [alone.weight, len(losses)]
    assert output.metrics["paired"].item() == pytest.approx(sum(right) / len(right))
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_a_head_beside_mlm_needs_a_first_token_that_sees_the_row():
    spec = make_spec(4)
    with pytest.raises(ContractError, match=r"^nsp: the first token .* bert or albert"):
        build("nsp", spec, GPT(spec.views["tokens"], dim=16, depth=1, heads=2))


def test_what_stands_at_other_places_is_not_asked_for():
    method, batch = made("mlm")
    logits = method.encoder.word.weight  # any
    chosen = chosen_tokens(batch, "mlm")
    assert chosen.places_BS.shape == (4, 4)
    assert (chosen.targets_N != IGNORED).sum() == 10
    states = torch.arange(4 * 12.0).view(4, 12, 1).expand(-1, -1, len(logits))
    taken = states_at(states, chosen.places_BS)[:, 0].long()
    asked = chosen.targets_N != IGNORED
    assert (batch.targets["mlm"].flatten()[taken][asked] == chosen.targets_N[asked]).all()


def test_without_any_hidden_token_the_loss_is_0_and_not_nan():
    method, batch = made("mlm")
    nothing = torch.full_like(batch.targets["mlm"], IGNORED)
    empty = replace(batch, targets={"mlm": nothing}, hidden={"mlm": 0 * batch.hidden["mlm"]})
    output = method(empty)
    output.loss.backward()
    assert output.loss == 0
    assert output.weight == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


# --- T5


def test_t5_writes_each_token_after_those_before_it():
    method, batch = made("t5")
    method.eval()
    targets, (documents, _) = batch.targets["t5"][0], batch.segments["t5"]
    segments = batch.segments["tokens"]
    read = method.encoder.hidden(batch.views["tokens"][0], segments)
    losses = []
    for row in range(len(targets)):
        for place in range(targets.shape[1]):
            number = documents[row, place]
            if number < 0:
                continue
            here = [p for p in range(place) if documents[row, p] == number]
            before = torch.tensor([[0, *targets[row, here].tolist()]])
            mine = segments[0, row] == number
            states = method.encoder.written(
                before, torch.zeros_like(before), read[row][mine][None],
                torch.zeros(1, int(mine.sum()), dtype=torch.int64),
            )  # fmt: skip
            logits = states[0, -1] @ method.encoder.shared.weight.T / 16**0.5
            losses.append(-logits.log_softmax(0)[targets[row, place]])
    output = method(batch)
    assert output.weight == len(losses)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)


def test_targets_are_shifted_once_and_never_over_a_border():
    targets = torch.tensor([[9, 8, 7, 6, IGNORED, IGNORED]])
    documents = torch.tensor([[0, 0, 1, 1, -1, -1]])
    assert shifted(targets, documents).tolist() == [[0, 9, 0, 7, 0, 0]]


def test_no_target_tells_itself():
    """Twice or never shifted, a decoder would see what it is asked for."""
    method, batch = made("t5")
    method.eval()
    changed = batch.targets["t5"].clone()
    changed[..., 1] = 4 + (changed[..., 1] - 3) % 15
    other = replace(batch, targets={"t5": changed})

    def states(batch):
        documents = batch.segments["t5"][0]
        read = method.encoder.hidden(batch.views["tokens"][0], batch.segments["tokens"])
        before = shifted(batch.targets["t5"][0], documents)
        return method.encoder.written(before, documents, read, batch.segments["tokens"][0])

    moved = (states(batch) != states(other)).any(-1)[0].tolist()
    assert moved == [False, False, True, False, False]  # the next of its document alone


# --- ELECTRA


def test_electra_labels_what_differs_and_looks_at_all_real_tokens(monkeypatch):
    method, batch = made("electra")
    method.eval()
    guesses = torch.arange(16) % 16 + 4
    monkeypatch.setattr("sslpipe.methods.electra.sampled", lambda logits: guesses)
    seen = {}

    def spy(scores_BL, replaced_BL, real_BL, *, weight):
        assert weight == 40
        seen.update(scores=scores_BL, replaced=replaced_BL, real=real_BL)
        return replaced_loss(scores_BL, replaced_BL, real_BL)

    monkeypatch.setattr("sslpipe.methods.electra.replaced_loss", spy)
    output = method(batch)
    tokens, targets = batch.views["tokens"][0].clone(), batch.targets["mlm"][0]
    original = torch.where(targets != IGNORED, targets, tokens)
    put, wrong = original.clone(), torch.zeros_like(original, dtype=torch.bool)
    for row in range(4):
        for number, place in enumerate(torch.nonzero(targets[row] != IGNORED)[:, 0].tolist()):
            put[row, place] = guesses.view(4, 4)[row, number]
            wrong[row, place] = put[row, place] != original[row, place]
    assert torch.equal(seen["replaced"], wrong)
    assert torch.equal(seen["real"], batch.segments["tokens"][0] >= 0)
    scores = method.head(method.encoder.hidden(put, batch.segments["tokens"]))[..., 0]
    torch.testing.assert_close(seen["scores"], scores)
    finding = F.binary_cross_entropy_with_logits(scores[seen["real"]], wrong[seen["real"]].float())
    torch.testing.assert_close(output.metrics["finding"], finding.detach())
    torch.testing.assert_close(
        output.loss.detach(), output.metrics["guessing"] + 50 * output.metrics["finding"]
    )
    assert output.weight.tolist() == [10, 40]


def test_no_gradient_goes_through_the_sample_and_both_share_the_embeddings():
    method, batch = made("electra")
    method.weight = 1e9
    method(batch).loss.backward()
    layers = [p.grad.abs().max() for p in method.generator.layers.parameters()]
    assert max(layers) < 1e3  # of its own loss alone
    word = method.encoder.word.weight
    assert sum(p is word for p in method.parameters()) == 1
    assert not [n for n, _ in method.generator.named_parameters() if "embedding" in n]


def test_samples_follow_the_softmax_and_the_key():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    with keyed("step", seed=0, step=3):
        one = sampled(logits)
    with keyed("step", seed=0, step=3):
        again = sampled(logits)
    with keyed("step", seed=0, step=4):
        other = sampled(logits)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    shares = torch.bincount(one, minlength=4) / len(one)
    assert (shares - logits[0].softmax(0)).abs().max() < 4 * 0.5 / 20_000**0.5


def test_a_generator_is_as_wide_as_its_heads_allow():
    spec = make_spec(4)
    torch.manual_seed(0)
    encoder = BERT(spec.views["tokens"], dim=64, depth=3, heads=8)
    method = build("electra", spec, encoder, generator=0.25)
    assert method.generator.project.out_features == 16
    assert [layer.heads for layer in method.generator.layers] == [2] * 3


# --- SimCSE


def test_simcse_is_a_loop_over_rows():
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    losses = []
    for i in range(5):
        alike = torch.stack([F.cosine_similarity(one[i], two[j], dim=0) / 0.05 for j in range(5)])
        losses.append(-alike.log_softmax(0)[i])
    torch.testing.assert_close(simcse_loss(one, two, temperature=0.05), torch.stack(losses).mean())


def test_two_passes_differ_by_keyed_dropout_alone():
    method, batch = made("simcse")
    losses = []
    for step in (3, 3, 4):
        with keyed("step", seed=0, step=step):
            losses.append(method(batch).loss.item())
    assert losses[0] == losses[1] != losses[2]
    rows = []
    method.projector.register_forward_hook(lambda _m, given, _o: rows.append(given[0]))
    method(batch)
    first, second = rows[0].chunk(2)
    assert not torch.isclose(first, second).all(1).any()
    method.eval()
    method(batch)
    first, second = rows[1].chunk(2)
    torch.testing.assert_close(first, second)


# --- refusals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlm", "mlm: Identity gives no states.*set train.backbone to bert"),
        ("causal_lm", "causal_lm: Identity gives no states.*set train.backbone to gpt"),
        ("t5", "t5: Identity has no decoder.*set train.backbone to t5"),
        ("electra", "electra: a Identity .*set train.backbone to bert"),
        ("simcse", r"simcse: .*set train.backbone to \{bert: \{dropout: 0.1\}\}"),
    ],
)
def test_an_encoder_that_cannot_is_named(name, message):
    with pytest.raises(ContractError, match=message):
        build(name, make_spec(4), torch.nn.Identity())


def test_a_bert_without_dropout_is_no_simcse():
    spec = make_spec(4)
    with pytest.raises(ContractError, match="two passes of this BERT are the same"):
        build("simcse", spec, BERT(spec.views["tokens"], dim=16, depth=1, heads=2))


@pytest.mark.parametrize("name", ["mlm", "electra", "nsp", "sop", "t5"])
def test_a_missing_task_is_named(name):
    spec = make_spec(4)
    with pytest.raises(ContractError, match=f"Add targets.{'t5' if name == 't5' else 'mlm'}"):
        build(name, replace(spec, targets={}))


def test_pictures_are_no_text():
    spec = make_spec(4)
    pictures = {n: v for n, v in spec.views.items() if n != "tokens"}
    encoder = GPT(spec.views["tokens"], dim=16, depth=1, heads=2)
    with pytest.raises(ContractError, match="causal_lm needs one group of tokens"):
        build("causal_lm", replace(spec, views=pictures), encoder)


def test_a_wrong_share_is_a_line_of_the_recipe():
    with pytest.raises((RecipeError, ContractError), match="generator = 0"):
        build("electra", make_spec(4), generator=0)


def test_minus_100_is_never_an_embedding():
    """Naive error: the index of what no loss looks at, looked up in a table."""
    view = ViewSpec("tokens", 1, "L", (6,), torch.int64, vocabulary=20)
    with pytest.raises(IndexError):
        GPT(view, dim=16, depth=1, heads=2).wte(torch.tensor([IGNORED]))
    _, batch = made("t5")
    before = shifted(batch.targets["t5"][0], batch.segments["t5"][0])
    assert before.min() >= 0


def test_the_mean_is_that_of_torch():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, IGNORED, 2, 3, IGNORED, 0])
    torch.testing.assert_close(mean_over_tokens(logits, targets), F.cross_entropy(logits, targets))
