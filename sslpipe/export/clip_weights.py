"""What `transformers` calls encoders of clips: its ViViT and its TimeSformer.

A `ClipViT` is its VivitModel, which has a class token too (its VideoMAEModel has none); a
`TimeSformer` is its TimesformerModel of divided attention. Names are those of the published
checkpoints, which versions 4 and 5 read. Both take frames before channels, (B, T, C, H, W).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.timesformer import TimeSformer
from ..encoders.video import ClipResNet, ClipViT
from .checks import EXAMPLES, check_alike, loaded, transformers_here
from .trained import Trained
from .writers import metadata, write_json, write_tensors

FOLDER = "transformers"  # inside an export, whose own weights keep their names
BLOCK = {
    r"^blocks\.(\d+)\.norm1\.": r"encoder.layer.\1.layernorm_before.",
    r"^blocks\.(\d+)\.norm2\.": r"encoder.layer.\1.layernorm_after.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layer.\1.attention.output.dense.",
    r"^blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layer.\1.intermediate.dense.",
    r"^blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layer.\1.output.dense.",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^cls_token$": "embeddings.cls_token",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^norm\.": "layernorm.",
}
DIVIDED = {
    r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layer.\1.attention.attention.qkv.",
    r"^blocks\.(\d+)\.temporal_norm1\.": r"encoder.layer.\1.temporal_layernorm.",
    r"^blocks\.(\d+)\.temporal_attn\.qkv\.": r"encoder.layer.\1.temporal_attention.attention.qkv.",
    r"^blocks\.(\d+)\.temporal_attn\.proj\.": r"encoder.layer.\1.temporal_attention.output.dense.",
    r"^blocks\.(\d+)\.temporal_fc\.": r"encoder.layer.\1.temporal_dense.",
    r"^time_embed$": "embeddings.time_embeddings",
}
QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")
NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"vivit": BLOCK, "timesformer": {**BLOCK, **DIVIDED}}
)


def is_of_clips(encoder: nn.Module) -> bool:
    """Tell whether an encoder is one of ours that takes clips."""
    return isinstance(encoder, ClipViT | TimeSformer | ClipResNet)


def clip_obstacles(encoder: nn.Module) -> dict[str, str]:
    """Why an encoder of clips cannot be written in some formats, by format."""
    found = {"timm": "timm has no models of clips"}
    if not isinstance(encoder, ClipResNet):
        found["torchvision"] = f"torchvision has no model like {type(encoder).__name__}"
        rows, columns = cast(Any, encoder.model).patch_embed.grid_size[-2:]
        if rows != columns:
            found["hf"] = "transformers has such models of square frames alone"
        if any(name.endswith(".ls1.gamma") for name in encoder.state_dict()):
            found["hf"] = "transformers has no layer scale in such models"
        return found
    found["hf"] = "transformers has no 3-D ResNet"
    if encoder.blueprint is None:
        found["torchvision"] = "no name and arguments of torchvision make this model"
    return found


def write_transformers(folder: Path, trained: Trained) -> bool:
    """Write a folder for `AutoModel.from_pretrained`; tell whether it could be loaded to compare.

    Raises:
        SslpipeError: transformers gives other features than the encoder.
    """
    folder.mkdir()
    kind = "vivit" if isinstance(trained.encoder, ClipViT) else "timesformer"
    state = renamed(cast(nn.Module, trained.encoder.model).state_dict(), kind)
    write_tensors(folder / "model.safetensors", state, metadata(trained))
    write_json(folder / "config.json", config_of_clips(trained, kind))
    return check_clips(folder, trained)


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights of a model under the names of `transformers`; ViViT has three for one of ours."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        split = QKV.match(name)
        if kind == "vivit" and split:
            stem = f"encoder.layer.{split[1]}.attention.attention"
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{stem}.{part}.{split[2]}"] = piece
            continue
        new = name
        for ours, theirs in NAMES[kind].items():
            new = re.sub(ours, theirs, new)
        found[new] = tensor
    return found


def config_of_clips(trained: Trained, kind: str) -> dict[str, Any]:
    """What config.json says of the encoder."""
    model: Any = trained.encoder.model
    first = model.blocks[0]
    channels, frames, height, _ = trained.shape
    patch = cast(tuple[int, ...], trained.encoder.patch_size)
    of_kind = {
        "vivit": {"architectures": ["VivitModel"], "tubelet_size": list(patch)},
        "timesformer": {
            "architectures": ["TimesformerModel"], "patch_size": patch[-1],
            "attention_type": "divided_space_time", "drop_path_rate": 0,
        },
    }  # fmt: skip
    return {
        "model_type": kind, **of_kind[kind],
        "image_size": height, "num_frames": frames, "num_channels": channels,
        "hidden_size": model.embed_dim, "num_hidden_layers": len(model.blocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features, "hidden_act": "gelu",
        "layer_norm_eps": first.norm1.eps, "qkv_bias": first.attn.qkv.bias is not None,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dtype": "float32",
    }  # fmt: skip


@torch.no_grad()
def check_clips(folder: Path, trained: Trained) -> bool:
    """Load a folder and compare features, if transformers is there; tell whether it is.

    Raises:
        SslpipeError: the features differ.
    """
    transformers = transformers_here()
    if transformers is None:
        return False
    clips_BCTHW = trained.examples(EXAMPLES)
    hidden_BND = loaded(transformers, folder)(clips_BCTHW.transpose(1, 2)).last_hidden_state
    means = pools_patches(trained)
    features_BD = hidden_BND[:, 1:].mean(1) if means else hidden_BND[:, 0]
    what = f"transformers {transformers.__version__}"
    check_alike(features_BD, trained.features(clips_BCTHW), what, trained.path)
    return True


def pools_patches(trained: Trained) -> bool:
    """Tell whether features are the mean of the patches, not the class token."""
    encoder = trained.encoder
    return isinstance(encoder, ClipViT) and encoder.model.global_pool == "avg"
