"""Text encoders against transformers, and documents in a row against the same documents alone."""

import pytest
import torch
from torch import nn

from sslpipe.batch import ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.albert import ALBERT
from sslpipe.encoders.text import BERT, GPT, allowed
from sslpipe.errors import RecipeError
from sslpipe.recipe import Entry

VOCABULARY, LENGTH = 50, 24
VIEW = ViewSpec("tokens", 1, "L", (LENGTH,), torch.int64, vocabulary=VOCABULARY)
SIZES = {"dim": 32, "depth": 3, "heads": 4}
KINDS = {"gpt": GPT, "bert": BERT, "albert": ALBERT}


@pytest.fixture(params=KINDS)
def encoder(request):
    torch.manual_seed(0)
    return KINDS[request.param](VIEW, **SIZES).eval()


def tokens(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (count, LENGTH), generator=generator)


def whole(rows):
    """The segments of rows that are one document each."""
    places = torch.arange(rows.shape[1]).expand_as(rows)
    return torch.stack([torch.zeros_like(rows), places])


def packed(lengths):
    """The segments of one row of documents of these lengths, and padding."""
    documents = [torch.full((n,), i) for i, n in enumerate(lengths)]
    places = [torch.arange(n) for n in lengths]
    rest = LENGTH - sum(lengths)
    documents, places = [*documents, torch.full((rest,), -1)], [*places, torch.arange(rest)]
    return torch.stack([torch.cat(documents), torch.cat(places)])[:, None]


def test_gpt_is_gpt2_of_transformers_with_the_same_weights():
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=3, n_head=4,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs, ours = GPT2Model(config).eval(), GPT(VIEW, **SIZES).eval()
    ours.load_state_dict(theirs.state_dict())
    rows = tokens()
    expected = theirs(rows).last_hidden_state
    torch.testing.assert_close(ours.hidden(rows, whole(rows)), expected, rtol=0, atol=1e-5)
    torch.manual_seed(2)
    theirs.load_state_dict(GPT(VIEW, **SIZES).state_dict())  # and back, by name


def test_bert_is_bert_of_transformers_with_the_same_weights():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=32,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = BertModel(config, add_pooling_layer=False).eval()
    ours = BERT(VIEW, **SIZES).eval()
    state = {n: t for n, t in theirs.state_dict().items() if not n.endswith("_ids")}
    ours.load_state_dict(state)
    rows = tokens()
    expected = theirs(rows).last_hidden_state
    torch.testing.assert_close(ours.hidden(rows, whole(rows)), expected, rtol=0, atol=1e-5)


def two_texts(rows, first):
    """The segments of rows that are one document each, of two texts."""
    types = (torch.arange(rows.shape[1]) >= first).long().expand_as(rows)
    return torch.cat([whole(rows), types[None]])


def test_bert_knows_the_two_texts_of_a_row():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=32,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs, ours = BertModel(config, add_pooling_layer=False).eval(), BERT(VIEW, **SIZES).eval()
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if not n.endswith("_ids")})
    rows = tokens()
    segments = two_texts(rows, 9)
    expected = theirs(rows, token_type_ids=segments[2]).last_hidden_state
    torch.testing.assert_close(ours.hidden(rows, segments), expected, rtol=0, atol=1e-5)
    assert (ours.hidden(rows, whole(rows)) - expected).abs().max() > 1e-3


def test_albert_is_albert_of_transformers_with_the_same_weights():
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=32, embedding_size=8,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = AlbertModel(config, add_pooling_layer=False).eval()
    ours = ALBERT(VIEW, embedding=8, **SIZES).eval()
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if not n.endswith("_ids")})
    rows = tokens()
    segments = two_texts(rows, 11)
    expected = theirs(rows, token_type_ids=segments[2]).last_hidden_state
    torch.testing.assert_close(ours.hidden(rows, segments), expected, rtol=0, atol=1e-5)
    deeper = ALBERT(VIEW, embedding=8, dim=32, depth=9, heads=4)
    assert sum(p.numel() for p in deeper.parameters()) == sum(p.numel() for p in ours.parameters())


def test_heads_beside_mlm_are_those_of_transformers():
    """BertForPreTraining: logits of tokens and of two classes, of the same weights."""
    from transformers import BertConfig, BertForPreTraining

    from sslpipe.methods.nsp import PairHead
    from sslpipe.methods.parts.tokens import MaskedTokenHead

    config = BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=32,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs, ours = BertForPreTraining(config).eval(), BERT(VIEW, **SIZES).eval()
    state = {
        n.removeprefix("bert."): t for n, t in theirs.bert.state_dict().items()
        if "pooler" not in n and not n.endswith("_ids")
    }  # fmt: skip
    ours.load_state_dict(state)
    guess, pairs = MaskedTokenHead(32, ours.word), PairHead(32)
    theirs_guess = theirs.cls.predictions
    guess.transform[0].load_state_dict(theirs_guess.transform.dense.state_dict())
    guess.transform[2].load_state_dict(theirs_guess.transform.LayerNorm.state_dict())
    guess.bias.data.copy_(theirs_guess.bias)
    pairs.pooler.load_state_dict(theirs.bert.pooler.dense.state_dict())
    pairs.classes.load_state_dict(theirs.cls.seq_relationship.state_dict())
    rows = tokens()
    segments = two_texts(rows, 9)
    expected = theirs(rows, token_type_ids=segments[2])
    states = ours.hidden(rows, segments)
    logits = guess(states.flatten(0, 1), ours.word.weight).unflatten(0, rows.shape)
    torch.testing.assert_close(logits, expected.prediction_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(pairs(states), expected.seq_relationship_logits, rtol=0, atol=1e-5)


def test_packed_documents_are_what_they_are_alone(encoder):
    (row,) = tokens(1)
    lengths = (9, 1, 10)
    together = encoder.hidden(row[None], packed(lengths))[0]
    start = 0
    for length in lengths:
        alone = row[None, start : start + length]
        expected = encoder.hidden(alone, whole(alone))[0]
        torch.testing.assert_close(together[start : start + length], expected, rtol=0, atol=1e-5)
        start += length


def test_no_document_moves_another_and_the_future_moves_no_past(encoder):
    (row,) = tokens(1)
    changed = row.clone()
    changed[12] = (changed[12] + 1) % 40 + 4  # in the second document, places 9 to 18
    one, other = (encoder.hidden(r[None], packed((9, 10)))[0] for r in (row, changed))
    moved = (one != other).any(-1)
    assert not moved[:9].any()
    assert not moved[19:].any()
    assert moved[12:19].all()
    assert moved[9:12].any() == (not isinstance(encoder, GPT))


def test_allowed_pairs_of_three_documents():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    assert int(allowed(documents, causal=True).sum()) == 6 + 3 + 6
    assert int(allowed(documents, causal=False).sum()) == 9 + 4 + 9


def test_pooled_features_leave_padding_out(encoder):
    rows = tokens()
    short = rows.clone()
    short[:, 15:] = 0
    expected = encoder.hidden(rows[:, :15], whole(rows[:, :15])).mean(1)
    torch.testing.assert_close(encoder(short), expected, rtol=0, atol=1e-5)
    assert encoder(torch.zeros_like(rows)).isfinite().all()


@pytest.mark.parametrize("at_once", [2 * LENGTH, 2**16])
def test_long_documents_are_read_in_pieces_whose_tokens_weigh_alike(encoder, monkeypatch, at_once):
    monkeypatch.setattr("sslpipe.encoders.tokens.AT_ONCE", at_once)
    sizes = [3 * LENGTH + 5, LENGTH, 1, 2 * LENGTH]
    rows = torch.zeros(4, 4 * LENGTH - 7, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for row, size in zip(rows, sizes, strict=True):
        row[:size] = torch.randint(4, VOCABULARY, (size,), generator=generator)
    pooled = encoder(rows)
    for row, size, found in zip(rows, sizes, pooled, strict=True):
        pieces = row[:size].split(LENGTH)
        states = [encoder.hidden(piece[None], whole(piece[None]))[0] for piece in pieces]
        torch.testing.assert_close(found, torch.cat(states).mean(0))
    torch.testing.assert_close(encoder(rows[1:2, :LENGTH]), pooled[1:2])


def test_official_start():
    torch.manual_seed(0)
    gpt = GPT(VIEW, dim=128, depth=8, heads=4)
    stds = {name: p.std().item() for name, p in gpt.named_parameters() if p.ndim > 1}
    for name, std in stds.items():
        expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
        assert std == pytest.approx(expected, rel=0.05), name
    bert = BERT(VIEW, dim=128, depth=2, heads=4)
    for module in bert.modules():
        if isinstance(module, nn.Linear):
            # a normal of .02 that is cut at two deviations has a std of .0176
            assert module.weight.std().item() == pytest.approx(0.0176, rel=0.05)
            assert module.weight.abs().max() <= 0.04
            assert not module.bias.any()


def test_a_backbone_of_tokens_refuses_pictures():
    view = ViewSpec("global", 1, "CHW", (3, 32, 32))
    with pytest.raises(RecipeError, match="not rows of tokens"):
        build_encoder(Entry("gpt", {}, "r.yaml:3"), view)


def test_dropout_of_bert_is_of_training_alone_and_of_every_layer():
    torch.manual_seed(0)
    without, dropping = BERT(VIEW, **SIZES), BERT(VIEW, **SIZES, dropout=0.1)
    dropping.load_state_dict(without.state_dict())
    rows = tokens()
    expected = without.hidden(rows, whole(rows))
    assert torch.equal(dropping.eval().hidden(rows, whole(rows)), expected)
    one, other = (dropping.train().hidden(rows, whole(rows)) for _ in range(2))
    assert not torch.equal(one, other)
    twice = dropping.hidden(rows[:1].repeat(2, 1), whole(rows[:1].repeat(2, 1)))
    assert not torch.isclose(twice[0], twice[1]).all(-1).any()  # rows drop for themselves
    assert [layer.drop.p for layer in dropping.layers] == [0.1] * 3
