"""Weights and settings of text encoders go to transformers and come back, by name."""

from dataclasses import replace

import pytest
import torch

from sslpipe.batch import ViewSpec
from sslpipe.encoders.t5 import T5
from sslpipe.encoders.text import BERT, GPT
from sslpipe.encoders.text_weights import (
    TextSizes,
    config_of,
    encoder_weights,
    kind_of,
    sizes_in,
    sizes_of,
    unlike,
)
from sslpipe.encoders.tokens import TokenEncoder

VOCABULARY, LENGTH = 50, 24
VIEW = ViewSpec("tokens", 1, "L", (LENGTH,), torch.int64, vocabulary=VOCABULARY)
SIZES = {"dim": 32, "depth": 2, "heads": 4}
ENCODERS = {
    "gpt2": (GPT, {}),
    "bert": (BERT, {"dropout": 0.1}),
    "electra": (BERT, {"embedding": 16}),
    "t5": (T5, {"width": 48}),
}
HEADED = {
    "gpt2": ("GPT2LMHeadModel", []),
    "bert": ("BertForMaskedLM", ["cls"]),
    "electra": ("ElectraForPreTraining", ["discriminator_predictions"]),
    "t5": ("T5ForConditionalGeneration", []),
}


def made(kind, seed=0):
    cls, settings = ENCODERS[kind]
    torch.manual_seed(seed)
    encoder = cls(VIEW, **SIZES, **settings).eval()
    with torch.no_grad():  # norms and biases as trained ones have them
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def theirs(kind, encoder, name):
    import transformers

    settings = config_of(encoder, kind)
    config = transformers.AutoConfig.for_model(
        settings.pop("model_type"), pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings
    )
    torch.manual_seed(9)
    return getattr(transformers, name)(config).eval()


def rows():
    return torch.randint(4, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def hidden(encoder, tokens):
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return encoder.hidden(tokens, torch.stack([torch.zeros_like(tokens), places]))


def states(model, tokens):
    if model.config.model_type == "t5":
        return model.get_encoder()(input_ids=tokens).last_hidden_state
    return model.base_model(input_ids=tokens).last_hidden_state


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_with_a_head_of_transformers_becomes_ours(kind):
    name, head = HEADED[kind]
    fresh = made(kind)
    reference = theirs(kind, fresh, name)
    found, rest = encoder_weights(kind, reference.state_dict())
    fresh.load_state_dict(found)  # every name, and none more
    assert {n.partition(".")[0] for n in rest} >= set(head)
    with torch.no_grad():
        expected = states(reference, rows())
        torch.testing.assert_close(hidden(fresh, rows()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_sizes_are_those_of_the_config_and_of_no_other(kind):
    encoder = made(kind)
    assert kind_of(encoder) == kind
    config = config_of(encoder, kind)
    assert sizes_in(config) == sizes_of(encoder)
    assert unlike(config) == []
    model = theirs(kind, encoder, HEADED[kind][0])
    assert sizes_in(model.config.to_dict()) == sizes_of(encoder)
    assert unlike(model.config.to_dict()) == []


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function: relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, "feed_forward_proj: gated-gelu"),
        ("t5", {"tie_word_embeddings": False}, "tie_word_embeddings: False"),
        ("t5", {"d_kv": 64}, "d_kv: 64"),
        ("t5", {"num_decoder_layers": 5}, "num_decoder_layers: 5"),
    ],
)
def test_models_that_ours_cannot_be_are_told(kind, change, found):
    (told,) = unlike(config_of(made(kind), kind) | change)
    assert told.startswith(found)


def test_a_size_that_is_not_said():
    config = config_of(made("gpt2"), "gpt2")
    assert sizes_in(config | {"n_inner": None}) == sizes_of(made("gpt2"))  # four times as wide
    del config["n_head"]
    with pytest.raises(KeyError, match="n_head"):
        sizes_in(config)


def test_names_of_old_checkpoints_are_those_of_now():
    tensors = {
        "bert.embeddings.LayerNorm.gamma": torch.ones(2),
        "bert.embeddings.position_ids": torch.arange(3),
        "bert.pooler.dense.bias": torch.ones(2),
        "cls.predictions.bias": torch.ones(2),
    }
    found, rest = encoder_weights("bert", tensors)
    assert list(found) == ["embeddings.LayerNorm.weight"]
    assert rest == sorted(list(tensors)[1:])
    bare = {"h.0.attn.bias": 1, "h.0.attn.masked_bias": 1, "h.0.attn.c_attn.bias": 1}
    found, rest = encoder_weights("gpt2", bare)
    assert (list(found), len(rest)) == (["h.0.attn.c_attn.bias"], 2)


def test_differences_are_named_and_lengths_are_another_matter():
    one = TextSizes(vocabulary=9, dim=8, depth=2, heads=2, width=32, length=5)
    other = TextSizes(vocabulary=10, dim=8, depth=2, heads=4, width=32, length=7)
    assert one.differing(other) == ["heads"]
    assert one.differing(one) == []
    narrow, wide = replace(one, embedding=4), replace(other, dim=16, embedding=16)
    assert narrow.differing(one) == ["embedding"]
    assert wide.differing(replace(one, embedding=8)) == ["dim", "heads"]


def test_an_encoder_of_somebody_else_has_no_sizes():
    class Mine(TokenEncoder):
        def hidden(self, tokens_BL, segments_2BL):
            raise NotImplementedError

    class Wider(BERT):
        pass

    assert sizes_of(Mine()) is None
    assert sizes_of(Wider(VIEW, **SIZES)) is None  # it may compute something else
