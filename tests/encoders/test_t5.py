"""T5 against transformers, its start, and documents that stay apart."""

import pytest
import torch

from sslpipe.batch import ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.t5 import T5, ScoreBias, bucket_of
from sslpipe.errors import RecipeError
from sslpipe.recipe import Entry

VOCABULARY, LENGTH = 50, 160
VIEW = ViewSpec("tokens", 1, "L", (LENGTH,), torch.int64, vocabulary=VOCABULARY)
ALIASES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def ours(**settings):
    torch.manual_seed(0)
    return T5(VIEW, dim=32, depth=3, heads=4, **settings)


def theirs():
    from transformers import T5Config, T5Model

    torch.manual_seed(1)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=128, num_layers=3, num_heads=4,
        dropout_rate=0, attn_implementation="eager",
    )  # fmt: skip
    model = T5Model(config).eval()
    with torch.no_grad():  # norms that differ from 1, as trained ones do
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (count, length), generator=generator)


def whole(rows):
    places = torch.arange(rows.shape[1]).expand_as(rows)
    return torch.stack([torch.zeros_like(rows), places])


def both(model, read, written):
    states = model.hidden(read, whole(read))
    none = torch.zeros_like
    return states, model.written(written, none(written), states, none(read))


def test_it_is_t5_of_transformers_with_the_same_weights():
    reference, model = theirs(), ours().eval()
    weights = {n: t for n, t in reference.state_dict().items() if n not in ALIASES}
    model.load_state_dict(weights)
    read, written = tokens(2, LENGTH), tokens(2, 140, seed=1)  # farther than 128
    expected = reference(input_ids=read, decoder_input_ids=written)
    states, answer = both(model, read, written)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(states, expected.encoder_last_hidden_state, **close)
    torch.testing.assert_close(answer, expected.last_hidden_state, **close)


def test_weights_go_back_by_name():
    reference, model = theirs(), ours().eval()
    found = reference.load_state_dict(model.state_dict(), strict=False)
    assert set(found.missing_keys) <= ALIASES
    assert not found.unexpected_keys
    read, written = tokens(2, 20), tokens(2, 9, seed=1)
    expected = reference(input_ids=read, decoder_input_ids=written).last_hidden_state
    torch.testing.assert_close(both(model, read, written)[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_transformers(causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 300)
    expected = T5Attention._relative_position_bucket(distances, bidirectional=not causal)
    assert torch.equal(bucket_of(distances, both=not causal), expected)


def test_packed_documents_are_what_they_are_alone():
    model = ours().eval()
    read, written = tokens(1, 30), tokens(1, 12, seed=1)
    sizes, targets = (9, 1, 20), (4, 3, 5)
    documents_BL, documents_BT = (
        torch.repeat_interleave(torch.arange(3), torch.tensor(n))[None] for n in (sizes, targets)
    )
    states = model.hidden(read, torch.stack([documents_BL, documents_BL]))
    answer = model.written(written, documents_BT, states, documents_BL)
    for number in range(3):
        one, other = read[documents_BL == number][None], written[documents_BT == number][None]
        alone, asked = both(model, one, other)
        close = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(states[documents_BL == number][None], alone, **close)
        torch.testing.assert_close(answer[documents_BT == number][None], asked, **close)


def test_no_document_moves_another_nor_the_future_the_past():
    model = ours().eval()
    documents_BL = torch.tensor([[0] * 10 + [1] * 10])
    documents_BT = torch.tensor([[0] * 5 + [1] * 5])
    read, written = tokens(1, 20), tokens(1, 10, seed=1)

    def answer(read, written):
        states = model.hidden(read, torch.stack([documents_BL, documents_BL]))
        return model.written(written, documents_BT, states, documents_BL)[0]

    before = answer(read, written)
    other = read.clone()
    other[0, 15] = 4 + (other[0, 15] - 3) % 40
    assert (answer(other, written) != before).any(-1).tolist() == [False] * 5 + [True] * 5
    later = written.clone()
    later[0, 7] = 4 + (later[0, 7] - 3) % 40
    assert (answer(read, later) != before).any(-1).tolist() == [False] * 7 + [True] * 3


def test_a_document_of_which_nothing_is_left_to_read_is_no_nan_and_sees_no_other():
    model = ours()
    documents_BL = torch.tensor([[0] * 10])
    documents_BT = torch.tensor([[0, 0, 1, 1, -1]])
    written = tokens(1, 5, seed=1)
    answers = []
    for seed in (0, 1):
        read = tokens(1, 10, seed=seed)
        states = model.hidden(read, torch.stack([documents_BL, documents_BL]))
        answers.append(model.written(written, documents_BT, states, documents_BL)[0])
    assert torch.equal(answers[0][2:4], answers[1][2:4])
    assert not torch.equal(answers[0][:2], answers[1][:2])
    answers[0].square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_is_seen_keeps_its_scores():
    mask = torch.tensor([[[[True, False], [False, False]]]])
    seen = ScoreBias(mask, torch.ones(1, 1, 2, 2))
    assert seen.scores_BHLS.tolist() == [[[[1.0, -torch.inf], [1.0, 1.0]]]]
    assert seen.any_BL1.tolist() == [[[True], [False]]]


def test_official_start():
    torch.manual_seed(0)
    model = T5(VIEW, dim=128, depth=2, heads=4, width=256)
    expected = {".q.weight": (128 * 32) ** -0.5, ".k.weight": 128**-0.5, "v.weight": 128**-0.5,
                ".o.weight": 128**-0.5, ".wi.weight": 128**-0.5, ".wo.weight": 256**-0.5,
                "bias.weight": 128**-0.5, "shared.weight": 1.0}  # fmt: skip
    seen = set()
    for name, parameter in model.named_parameters():
        for end, std in expected.items():
            if name.endswith(end):
                seen.add(end)
                rel = 0.3 if end == "bias.weight" else 0.05
                assert parameter.std().item() == pytest.approx(std, rel=rel), name
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
    assert seen == set(expected)


def test_dropout_is_of_training_alone():
    model = ours(dropout=0.1)
    read, written = tokens(2, 20), tokens(2, 9, seed=1)
    one, other = (both(model.train(), read, written)[1] for _ in range(2))
    assert not torch.equal(one, other)
    one, other = (both(model.eval(), read, written)[1] for _ in range(2))
    assert torch.equal(one, other)


def test_a_recipe_s_sizes():
    with pytest.raises(RecipeError, match="dim = 30 is no multiple of heads = 4"):
        build_encoder(Entry("t5", {"dim": 30, "heads": 4}, "r.yaml:3"), VIEW)
    with pytest.raises(RecipeError, match="not rows of tokens"):
        build_encoder(Entry("t5", {}, "r.yaml:3"), ViewSpec("global", 1, "CHW", (3, 32, 32)))
