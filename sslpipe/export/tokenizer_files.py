"""The vocabulary of a run as files that `transformers.AutoTokenizer` reads.

What it makes of a text is what the run saw of it: begin and end stand where the recipe has them,
and special tokens that are spelt out in a text are text. Bytes are a BPE without merges.
"""

import importlib
from pathlib import Path
from typing import Any

from ..errors import ExtraError, RecipeError
from ..modalities.text.decider import Tokens, tokens_of
from ..modalities.text.trained import TrainedVocabulary, open_vocabulary
from ..modalities.text.training import single_bytes
from ..modalities.text.vocabulary import SPECIALS, UNKNOWN, Vocabulary, sentinel
from .trained import Trained
from .writers import write_json

NAMES = ("pad_token", "bos_token", "eos_token", "mask_token")  # of SPECIALS, as transformers has it


def vocabulary_of_run(trained: Trained) -> tuple[Tokens, Vocabulary | None, str]:
    """What rows were made by, and the vocabulary; without it, why it is not there."""
    recipe, (group,) = trained.recipe, [trained.view["group"]]
    tokens = tokens_of(recipe, [group])
    try:
        found = open_vocabulary(tokens.vocabulary, recipe.views[group].ops[0].where)
    except (RecipeError, ExtraError) as error:
        return tokens, None, str(error)
    if found.fingerprint and f"vocabulary {found.fingerprint}" not in trained.files:
        return tokens, None, f"{tokens.vocabulary} was changed since the run"
    return tokens, found, ""


def write_tokenizer(folder: Path, vocabulary: Vocabulary, tokens: Tokens) -> None:
    """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer reads, into a folder.

    Raises:
        ExtraError: `tokenizers` is missing.
    """
    tokenizer = tokenizer_of(vocabulary)
    set_ends(tokenizer, begin=tokens.begin, end=tokens.end)
    tokenizer.save(str(folder / "tokenizer.json"))
    unknown = {"unk_token": UNKNOWN} if tokenizer.token_to_id(UNKNOWN) is not None else {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(NAMES, SPECIALS, strict=True)),
        **unknown,
        "model_max_length": tokens.length,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config)


def tokenizer_of(vocabulary: Vocabulary) -> Any:
    """A tokenizer of the library `tokenizers` with the same ids.

    Raises:
        ExtraError: it is not installed.
    """
    if isinstance(vocabulary, TrainedVocabulary):
        return importlib.import_module("tokenizers").Tokenizer.from_buffer(vocabulary.data)
    tokenizer = single_bytes([], vocabulary.size)
    tokenizer.add_special_tokens([sentinel(n) for n in reversed(range(vocabulary.sentinels))])
    return tokenizer


def set_ends(tokenizer: Any, *, begin: bool, end: bool) -> None:
    """Let begin and end stand around a text, as around a document of the run."""
    processors = importlib.import_module("tokenizers").processors
    _, first, last, _ = SPECIALS
    around = ([first] if begin else []), ([last] if end else [])
    single = " ".join([*around[0], "$A", *around[1]])
    ids = [(first, 1), (last, 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {' '.join([*around[0], '$B', *around[1]])}",
        special_tokens=ids,
    )
