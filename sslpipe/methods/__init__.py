"""Methods: one file each, and the way from a recipe's entry to a method under anyone's trainer."""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..batch import BatchSpec
from ..encoders.sizes import check_most
from ..errors import RecipeError
from ..recipe.names import Entry, bind, call, choose
from .autoencoder import Autoencoder
from .barlow_twins import BarlowTwins
from .beit import BEiT
from .byol import BYOL
from .causal_lm import CausalLM
from .clip import CLIP
from .colorization import Colorization
from .data2vec2 import Data2Vec2
from .deepcluster import DeepClusterV2
from .dino import DINO
from .dinov2 import DINOv2
from .electra import ELECTRA
from .hubert import HuBERT
from .ibot import IBOT
from .ijepa import IJEPA
from .inpainting import Inpainting
from .jigsaw import Jigsaw
from .lejepa import LeJEPA
from .mae import MAE
from .method import Method, Output, Sign
from .mlm import MLM
from .moco import MoCo
from .moco_v3 import MoCoV3
from .msn import MSN
from .nnclr import NNCLR
from .nsp import NSP, SOP
from .relative_patch import RelativePatch
from .rotation import Rotation
from .siglip import SigLIP
from .simclr import SimCLR
from .simcse import SimCSE
from .simmim import SimMIM
from .simsiam import SimSiam
from .swav import SwAV
from .t5 import SpanDenoising
from .vicreg import VICReg
from .wav2vec2 import Wav2Vec2

__all__ = ["METHODS", "Method", "Output", "Sign", "build_method", "check_method", "follow"]

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "autoencoder": Autoencoder,
        "barlow_twins": BarlowTwins,
        "beit": BEiT,
        "byol": BYOL,
        "causal_lm": CausalLM,
        "clip": CLIP,
        "colorization": Colorization,
        "data2vec2": Data2Vec2,
        "deepcluster_v2": DeepClusterV2,
        "dino": DINO,
        "dinov2": DINOv2,
        "electra": ELECTRA,
        "hubert": HuBERT,
        "ibot": IBOT,
        "ijepa": IJEPA,
        "inpainting": Inpainting,
        "jigsaw": Jigsaw,
        "lejepa": LeJEPA,
        "mae": MAE,
        "mlm": MLM,
        "moco": MoCo,
        "moco_v3": MoCoV3,
        "msn": MSN,
        "nnclr": NNCLR,
        "nsp": NSP,
        "relative_patch": RelativePatch,
        "rotation": Rotation,
        "siglip": SigLIP,
        "simclr": SimCLR,
        "simcse": SimCSE,
        "simmim": SimMIM,
        "simsiam": SimSiam,
        "sop": SOP,
        "swav": SwAV,
        "t5": SpanDenoising,
        "vicreg": VICReg,
        "wav2vec2": Wav2Vec2,
    }
)


def check_method(entry: Entry) -> None:
    """Check name and settings of a method, and build nothing.

    Raises:
        RecipeError: unknown name or setting, a setting of a wrong type, or a size beyond use.
    """
    settings = bind(choose(entry, METHODS, "method"), entry)
    if ":" not in entry.name:  # what a user's own settings mean is the user's
        check_most(entry, settings)


def build_method(entry: Entry, encoder: nn.Module, spec: BatchSpec) -> Method:
    """Make the method that an entry names; a user's own is `package.module:Class`.

    Raises:
        RecipeError: as `check_method`, or a class of the user's that is no Method.
        ContractError: the batches or the encoder cannot feed the method.
    """
    check_method(entry)
    made = call(choose(entry, METHODS, "method"), entry, encoder, spec)
    if not isinstance(made, Method):
        raise RecipeError(
            f"{entry.where}: {entry.name} made a {type(made).__name__}, which is no method; "
            "derive it from sslpipe.methods.Method"
        )
    try:
        made.encoder  # noqa: B018  what it keeps is asked for at the end of a run, too
    except NotImplementedError as error:
        raise RecipeError(f"{entry.where}: {error}") from error
    return made


def follow(
    optimizer: torch.optim.Optimizer, method: Method, total_steps: int, *, done: int = 0
) -> RemovableHandle:
    """Run `method.after_step` after every optimizer step, whoever the trainer is.

    `method` is the bare module, not its DDP wrapper. `done` are the steps before a resume.
    Accumulated batches and steps that a gradient scaler skips do not count, as it should be.
    """
    assert 0 <= done < total_steps, (done, total_steps)
    steps = itertools.count(done + 1)

    def hook(*_: Any) -> None:
        # a trainer that runs on past total_steps stays at 1: schedules must not turn back
        method.after_step(min(next(steps) / total_steps, 1.0))

    return optimizer.register_step_post_hook(hook)
