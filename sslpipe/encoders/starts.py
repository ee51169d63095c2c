"""How the weights of a ViT start in the official codes, where timm's start is another.

timm draws linear layers and positions from a normal distribution of std .02, the class token at
1e-6, and leaves the patch embedding to torch (uniform). DINOv2 does the same.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

Start = Literal["timm", "dino", "msn", "beit", "ijepa"]
STD = 0.02


def start_like(model: Any, start: Start) -> None:
    """Draw anew, in place, the weights of timm's ViT that start differently in a code."""
    STARTS[start](model)


def timm(model: Any) -> None:
    """Leave all as timm drew it."""


def dino(model: Any) -> None:
    """Draw the class token: DINO and iBOT, vision_transformer.py, VisionTransformer.__init__."""
    nn.init.trunc_normal_(model.cls_token, std=STD)


def msn(model: Any) -> None:
    """Draw class token and patch embedding: facebookresearch/msn, deit.py, _init_weights."""
    dino(model)
    nn.init.kaiming_normal_(model.patch_embed.proj.weight, mode="fan_in", nonlinearity="relu")
    nn.init.zeros_(model.patch_embed.proj.bias)


def ijepa(model: Any) -> None:
    """Draw the patch embedding: facebookresearch/ijepa, vision_transformer.py, _init_weights.

    Its constructor also divides residual branches by their depth; helper.py, init_model, then draws
    every linear layer anew, so nothing of that is left.
    """
    nn.init.trunc_normal_(model.patch_embed.proj.weight, std=STD)
    nn.init.zeros_(model.patch_embed.proj.bias)


def beit(model: Any) -> None:
    """Draw all weights, cut at one std, and scale residual branches by their depth.

    unilm/beit, modeling_pretrain.py; microsoft/SimMIM, vision_transformer.py with the
    _trunc_normal_ of simmim.py: the last layer of both branches of block l (from 1 up) is divided
    by sqrt(2 l).
    """
    weights = [
        m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    for weight in (model.pos_embed, model.cls_token, *weights):
        cut_normal(weight)
    nn.init.zeros_(model.patch_embed.proj.bias)
    with torch.no_grad():
        for number, block in enumerate(model.blocks, start=1):
            block.attn.proj.weight /= math.sqrt(2.0 * number)
            block.mlp.fc2.weight /= math.sqrt(2.0 * number)


def cut_normal(weight: Tensor) -> None:
    """Draw a weight of any shape, in place, from a normal distribution of std .02, cut at .02."""
    nn.init.trunc_normal_(weight, std=STD, a=-STD, b=STD)


STARTS: Mapping[Start, Callable[[Any], None]] = MappingProxyType(
    {"timm": timm, "dino": dino, "msn": msn, "beit": beit, "ijepa": ijepa}
)
