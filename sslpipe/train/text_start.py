"""`train --from` a folder with a text model as `transformers` writes it: config.json and weights.

GPT-2, BERT, ELECTRA and T5 of the first version. What a config.json says of the model must be so in
the recipe's backbone: the number of heads, say, stands in no shape. Positions may be more than the
rows are long. A vocabulary of another size is refused; one of the same size is held to be the same.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..encoders.text import TEXT_ENCODERS
from ..encoders.text_weights import (
    BACKBONES,
    POSITIONS,
    TextSizes,
    encoder_weights,
    sizes_in,
    sizes_of,
    unlike,
)
from ..errors import StateError
from ..shards.side_files import parse_json

CONFIG = "config.json"


def text_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a text model of a kind that ours can be; None: there is none.

    Raises:
        StateError: it is such a model with settings that ours cannot have, or damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise StateError(f"{path}: is no JSON object ({error}); restore it") from error
    if kind not in BACKBONES:  # of timm, or its names will be told
        check_other(path, config)
        return None
    check_config(path, config)
    return dict(config)


def check_other(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a text model of another kind, whose weights may have the names of ours.

    A RoBERTa has those of a BERT, and counts positions from 2. Speech models have an alphabet, too.

    Raises:
        StateError: it is one.
    """
    if "model_type" in config and "vocab_size" in config and "conv_dim" not in config:
        raise StateError(
            f"{path}: is a model of type {config['model_type']!r}, which no encoder of ours is; "
            f"take one of {', '.join(BACKBONES)}"
        )


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check that ours can be what a config.json means.

    Raises:
        StateError: it lacks a size, or means a model that ours has no setting for.
    """
    try:
        _, other = sizes_in(config), unlike(config)
    except KeyError as error:
        raise StateError(f"{path}: does not say {error.args[0]}; restore the file") from error
    if other:
        raise StateError(
            f"{path}: has {', '.join(other)}, which {BACKBONES[config['model_type']]} cannot be; "
            "take other weights"
        )


def text_weights(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The encoder's weights under names of ours, and the kinds of names that were left out."""
    found, rest = encoder_weights(str(config["model_type"]), tensors)
    kinds = sorted({name.partition(".")[0] if "." in name else name for name in rest})
    return found, f"; left out {', '.join(kinds)}" if kinds else ""


def fit_text(
    source: str, config: Mapping[str, Any], given: dict[str, Tensor], encoder: nn.Module
) -> str:
    """Check that a backbone has the sizes of the weights; cut positions to its rows, in place.

    Returns what was cut, for the line that is said.

    Raises:
        StateError: it has other sizes.
    """
    theirs, ours = sizes_in(config), sizes_of(encoder)
    kind = BACKBONES[config["model_type"]]
    wanted = backbone_of(kind, theirs)
    if ours is None or type(encoder) is not TEXT_ENCODERS[kind]:
        raise StateError(
            f"{source}: is a {config['model_type']}, the backbone a {type(encoder).__name__}; set "
            f"train.backbone to {wanted}"
        )
    if other := ours.differing(theirs):
        words = ", ".join(f"{n} {asdict(theirs)[n]}, not {asdict(ours)[n]}" for n in other)
        raise StateError(f"{source}: has {words}; set train.backbone to {wanted}")
    if ours.vocabulary != theirs.vocabulary:
        raise StateError(
            f"{source}: knows {theirs.vocabulary:,} tokens, the recipe's vocabulary has "
            f"{ours.vocabulary:,}; set vocabulary to what it was trained with"
        )
    return cut_positions(source, given, theirs.length, ours.length)


def backbone_of(kind: str, sizes: TextSizes) -> str:
    """The backbone of a recipe with these sizes, `{gpt: {dim: 64, depth: 2, heads: 4}}`."""
    found = {"dim": sizes.dim, "depth": sizes.depth, "heads": sizes.heads}
    if sizes.embedding not in (None, sizes.dim):
        found["embedding"] = int(sizes.embedding or 0)
    if kind == "t5":
        found["width"] = sizes.width
    return f"{{{kind}: {{{', '.join(f'{n}: {v}' for n, v in found.items())}}}}}"


def cut_positions(
    source: str, given: dict[str, Tensor], theirs: int | None, ours: int | None
) -> str:
    """Leave the positions that rows have, in place.

    Raises:
        StateError: rows are longer.
    """
    if ours is None or theirs is None or ours == theirs:
        return ""
    if theirs < ours:
        raise StateError(
            f"{source}: has positions for {theirs:,} tokens, rows have {ours:,}; set the length of "
            f"Tokens to {theirs} or less"
        )
    for name in POSITIONS:
        if name in given:
            given[name] = given[name][:ours].clone()
    return f"; the first {ours:,} of {theirs:,} positions"
