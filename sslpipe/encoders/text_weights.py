"""What `transformers` calls text encoders of ours: settings of a config.json, names of weights.

GPT is its GPT2Model, BERT its BertModel or, if its embeddings are narrow, its ElectraModel, T5 its
T5Model. Names of weights are the same, but for what a model with a head puts before them.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from .t5 import T5
from .text import BERT, GPT
from .tokens import TokenEncoder

Settings = Mapping[str, Any]
BERT_FIXED: Settings = MappingProxyType(
    {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
)
# settings that ours has no other value of; a config.json that leaves one out means the same
FIXED: Mapping[str, Settings] = MappingProxyType(
    {
        "gpt2": {
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": True,
        },
        "bert": {**BERT_FIXED, "tie_word_embeddings": True},
        "electra": BERT_FIXED,
        "t5": {
            "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "tie_word_embeddings": True,
        },
    }
)
BERT_SIZES: Mapping[str, str] = MappingProxyType(
    {
        "vocabulary": "vocab_size",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "width": "intermediate_size",
        "length": "max_position_embeddings",
    }
)
SIZES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gpt2": {
            "vocabulary": "vocab_size",
            "dim": "n_embd",
            "depth": "n_layer",
            "heads": "n_head",
            "width": "n_inner",
            "length": "n_positions",
        },
        "bert": BERT_SIZES,
        "electra": {**BERT_SIZES, "embedding": "embedding_size"},
        "t5": {
            "vocabulary": "vocab_size",
            "dim": "d_model",
            "depth": "num_layers",
            "heads": "num_heads",
            "width": "d_ff",
        },
    }
)
BACKBONES: Mapping[str, str] = MappingProxyType(
    {"gpt2": "gpt", "bert": "bert", "electra": "bert", "t5": "t5"}
)
PREFIXES: Mapping[str, str] = MappingProxyType(
    {"gpt2": "transformer.", "bert": "bert.", "electra": "electra.", "t5": ""}
)
# buffers of old versions, copies of tied weights, and heads beside an encoder without a prefix
LEFT_OUT = re.compile(
    r"(^|\.)(position_ids|embed_tokens\.weight|attn\.(masked_)?bias)$|^(lm_head|cls|pooler)\."
    r"|EncDecAttention\.relative_attention_bias\.weight$"
)
OLD_NORMS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
POSITIONS = ("wpe.weight", "embeddings.position_embeddings.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSizes:
    """The sizes of a text encoder; length and embedding are None where it has no such size.

    length: rows of its table of positions. width: of the MLPs. embedding: of its words.
    """

    vocabulary: int
    dim: int
    depth: int
    heads: int
    width: int
    length: int | None = None
    embedding: int | None = None

    def differing(self, other: "TextSizes") -> list[str]:
        """The names of what differs, but for the length and the vocabulary.

        Embeddings that are as wide as the layers do not differ beside those.
        """
        ours, theirs = asdict(self), asdict(other)
        wide = all(sizes.embedding in (None, sizes.dim) for sizes in (self, other))
        apart = {"length", "vocabulary"} | ({"embedding"} if wide else set())
        return [name for name in ours if name not in apart and ours[name] != theirs[name]]


def sizes_of(encoder: nn.Module) -> TextSizes | None:
    """The sizes of an encoder of ours; None: `transformers` has no such model."""
    if type(encoder) is GPT:
        heads, length = int(encoder.h[0].heads), encoder.wpe.num_embeddings  # type: ignore[arg-type]
        depth, width, embedding = len(encoder.h), 4 * encoder.dim, None
    elif type(encoder) is BERT:
        heads, length = encoder.heads, encoder.positions.num_embeddings
        depth, width, embedding = len(encoder.layers), 4 * encoder.dim, encoder.word.embedding_dim
    elif type(encoder) is T5:
        heads, length, depth = encoder.heads, None, len(encoder.encoder.block)
        width, embedding = encoder.width, None
    else:
        return None
    return TextSizes(
        vocabulary=encoder.word.num_embeddings, dim=encoder.dim, depth=depth, heads=heads,
        width=width, length=length, embedding=embedding,
    )  # fmt: skip


def kind_of(encoder: TokenEncoder) -> str:
    """The `model_type` that loads the weights of an encoder of ours."""
    if isinstance(encoder, BERT):
        return "bert" if encoder.word.embedding_dim == encoder.dim else "electra"
    return "gpt2" if isinstance(encoder, GPT) else "t5"


def config_of(encoder: TokenEncoder, kind: str) -> dict[str, Any]:
    """What a config.json says of an encoder of ours, as a model of `kind`."""
    sizes = sizes_of(encoder)
    assert sizes is not None
    named = {name: asdict(sizes)[ours] for ours, name in SIZES[kind].items()}
    config = {"model_type": kind, **named, **FIXED[kind]}
    if isinstance(encoder, T5):
        rate = encoder.encoder.drop.p
        return {
            **config, "d_kv": sizes.dim // sizes.heads, "num_decoder_layers": sizes.depth,
            "dropout_rate": rate, "is_encoder_decoder": True,
        }  # fmt: skip
    rate = encoder.drop.p if isinstance(encoder, BERT) else 0.0
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    if kind == "gpt2":
        names, config["attn_pdrop"] = ("resid_pdrop", "embd_pdrop"), rate
    return {**config, **dict.fromkeys(names, rate)}


def sizes_in(config: Settings) -> TextSizes:
    """The sizes that a config.json means.

    Raises:
        KeyError: it does not say one of them.
    """
    kind = str(config["model_type"])
    found = {ours: config.get(name) for ours, name in SIZES[kind].items()}
    found["width"] = found["width"] or (4 * found["dim"] if found["dim"] else None)
    if kind == "bert":
        found["embedding"] = found["dim"]
    numbers: dict[str, int] = {}
    for ours, value in found.items():
        if not isinstance(value, int):
            raise KeyError(SIZES[kind][ours])
        numbers[ours] = value
    return TextSizes(**numbers)


def unlike(config: Settings) -> list[str]:
    """What a config.json asks of a model that ours has no setting for, as `name: value`."""
    fixed = FIXED[str(config["model_type"])]
    found = [
        f"{name}: {config[name]}" for name in fixed if config.get(name, fixed[name]) != fixed[name]
    ]
    if config["model_type"] == "t5":
        wanted = {"d_kv": config["d_model"] // config["num_heads"]}
        wanted["num_decoder_layers"] = config["num_layers"]
        found += [
            f"{n}: {config[n]}" for n, v in wanted.items() if config.get(n, v) not in (v, None)
        ]
    return found


def encoder_weights(
    kind: str, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of the encoder under names of ours, and the names of what else was there."""
    prefix, found, rest = PREFIXES[kind], {}, []
    headed = any(name.startswith(prefix) for name in tensors)
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix)
        for old, new in OLD_NORMS:
            inner = inner.replace(old, new)
        if LEFT_OUT.search(inner) or (headed and not name.startswith(prefix)):
            rest.append(name)
        else:
            found[inner] = tensor
    return found, sorted(rest)
