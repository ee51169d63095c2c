"""An encoder of text as a folder that `transformers` loads: config, weights, tokenizer, card.

A method's output layer goes with the encoder where `transformers` has a model of both; T5's and
GPT's is the embedding. The folder is loaded and its hidden states compared before it has a name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..encoders.t5 import T5
from ..encoders.text_weights import PREFIXES, config_of, kind_of
from ..encoders.tokens import TokenEncoder
from .checks import check_alike, loaded, transformers_here
from .model_card import ExportSettings
from .text_card import TextUse, text_card
from .tokenizer_files import vocabulary_of_run, write_tokenizer
from .trained import Trained
from .writers import metadata, write_json, write_tensors

EXAMPLES = 3  # rows, of which the last one is half padding


class HeadNames(NamedTuple):
    """A model of an encoder and its output layer; `names`: ours at the start of a name, theirs."""

    kind: str
    architecture: str
    names: Mapping[str, str]


HEADS: Mapping[str, HeadNames] = MappingProxyType(
    {
        "mlm": HeadNames(
            "bert",
            "BertForMaskedLM",
            {
                "head.transform.0.": "cls.predictions.transform.dense.",
                "head.transform.2.": "cls.predictions.transform.LayerNorm.",
                "head.bias": "cls.predictions.bias",
            },
        ),
        "electra": HeadNames(
            "electra",
            "ElectraForPreTraining",
            {
                "head.0.": "discriminator_predictions.dense.",
                "head.2.": "discriminator_predictions.dense_prediction.",
            },
        ),
    }
)
WITHOUT: Mapping[str, str] = MappingProxyType(  # of encoders alone, or whose head is the embedding
    {
        "gpt2": "GPT2LMHeadModel",
        "bert": "BertModel",
        "electra": "ElectraModel",
        "t5": "T5ForConditionalGeneration",
    }
)


def write_text(
    part: Path, name: str, trained: Trained, formats: Sequence[str], settings: ExportSettings
) -> tuple[str, ...]:
    """Write all files of the model `name` to `part`; give the formats that nothing could check.

    Raises:
        SslpipeError: transformers gives other hidden states than the encoder.
    """
    headed = head_of(trained) if "hf" in formats else None
    tokens, vocabulary, lacking = vocabulary_of_run(trained)
    (part / "recipe.yaml").write_text(trained.recipe_yaml, encoding="utf-8")
    write_json(part / "preprocessing.json", asdict(tokens))
    write_tensors(part / "model.safetensors", named_state(trained, headed), metadata(trained))
    unchecked = False
    if "hf" in formats:
        write_config_of_text(part, trained, headed, begin=tokens.begin)
        if vocabulary is not None:
            write_tokenizer(part, vocabulary, tokens)
        unchecked = not check_in_transformers(part, trained)
    kind, architecture = model_of(trained, headed)
    use = TextUse(kind, architecture, tokens, lacking)
    text = text_card(trained, name, formats, use, settings.license_name, settings.measures)
    (part / "README.md").write_text(text, encoding="utf-8")
    return ("hf",) if unchecked else ()


def model_of(trained: Trained, headed: HeadNames | None) -> tuple[str, str]:
    """The `model_type`, and the class that holds all that is exported."""
    if headed is not None:
        return headed.kind, headed.architecture
    kind = kind_of(encoder_of_text(trained))
    return kind, WITHOUT[kind]


def encoder_of_text(trained: Trained) -> TokenEncoder:
    """The encoder, which is one of text."""
    assert isinstance(trained.encoder, TokenEncoder)
    return trained.encoder


def write_config_of_text(
    part: Path, trained: Trained, headed: HeadNames | None, *, begin: bool
) -> None:
    """Write config.json, and generation_config.json of models that generate."""
    encoder, (kind, architecture) = encoder_of_text(trained), model_of(trained, headed)
    ids = special_ids(encoder, begin=begin)
    config = {**config_of(encoder, kind), **ids, "architectures": [architecture]}
    write_json(part / "config.json", {**config, "dtype": "float32"})
    if kind in ("gpt2", "t5"):
        write_json(part / "generation_config.json", ids)


def special_ids(encoder: TokenEncoder, *, begin: bool) -> dict[str, int | None]:
    """The ids that generation asks for; documents that no token opens give none to begin with."""
    first = {"decoder_start_token_id": 0} if isinstance(encoder, T5) else {}
    return {"pad_token_id": 0, "bos_token_id": 1 if begin else None, "eos_token_id": 2, **first}


def head_of(trained: Trained) -> HeadNames | None:
    """The model of encoder and output layer that the run is, if `transformers` has such a one."""
    assert trained.recipe.method is not None
    found, kind = HEADS.get(trained.recipe.method.name), kind_of(encoder_of_text(trained))
    # BertForMaskedLM has no narrow embeddings; ElectraForPreTraining has wide ones, too
    return found if found and kind in ("bert", found.kind) else None


def named_state(trained: Trained, headed: HeadNames | None) -> dict[str, Tensor]:
    """The weights of the encoder, and of its output layer if there is one to go with it."""
    if headed is None:
        return dict(trained.encoder.state_dict())
    prefix = PREFIXES[headed.kind]
    state = {f"{prefix}{name}": t for name, t in trained.encoder.state_dict().items()}
    for name, tensor in trained.method_state.items():
        for ours, theirs in headed.names.items():
            if name.startswith(ours):
                state[theirs + name.removeprefix(ours)] = tensor
    return state


@torch.no_grad()
def check_in_transformers(folder: Path, trained: Trained) -> bool:
    """Load a folder by `AutoModel.from_pretrained`, if transformers is there; tell whether it is.

    Raises:
        SslpipeError: the hidden states differ.
    """
    transformers = transformers_here()
    if transformers is None:
        return False
    model, (tokens_BL, segments_2BL) = loaded(transformers, folder), examples(trained)
    real_BL, encoder = segments_2BL[0] >= 0, encoder_of_text(trained)
    asked = {"input_ids": tokens_BL, "attention_mask": real_BL.long()}
    ours_BLD = encoder.hidden(tokens_BL, segments_2BL)
    what = f"transformers {transformers.__version__}"
    if isinstance(encoder, T5):
        read = model.get_encoder()(**asked).last_hidden_state
        check_alike(read[real_BL], ours_BLD[real_BL], what, trained.path)
        none_BL = torch.zeros_like(tokens_BL)
        ours_BLD = encoder.written(tokens_BL, none_BL, ours_BLD, segments_2BL[0])
        asked |= {"decoder_input_ids": tokens_BL}
        real_BL = torch.ones_like(real_BL)
    theirs_BLD = model(**asked).last_hidden_state
    check_alike(theirs_BLD[real_BL], ours_BLD[real_BL], what, trained.path)
    return True


def examples(trained: Trained) -> tuple[Tensor, Tensor]:
    """Rows of any tokens, the last one half padding, and their segments; the same each time."""
    length, size = trained.shape[0], int(trained.view["vocabulary"])
    generator = torch.Generator().manual_seed(EXAMPLES)
    tokens_BL = torch.randint(1, size, (EXAMPLES, length), generator=generator)
    documents_BL = torch.zeros_like(tokens_BL)
    tokens_BL[-1, length // 2 :], documents_BL[-1, length // 2 :] = 0, -1
    places_BL = torch.arange(length).expand_as(tokens_BL)
    return tokens_BL, torch.stack([documents_BL, places_BL])
