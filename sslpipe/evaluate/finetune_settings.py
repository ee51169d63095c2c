"""The settings of fine-tuning: of MAE, BEiT and ResNets, and for 1 % and 10 % of the labels."""

from dataclasses import dataclass, replace

from ..recipe.names import Entry
from ..recipe.schema import TrainSection
from .fitting import OWN, momentum_sgd
from .mixing import Mixing


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """Settings of fine-tuning. `train.optimizer` has the encoder's learning rate for 256 samples.

    `head_lr`: that of the head, where it differs. `drop_path`: the rate of the last block, rising
    from 0. `mean_patches`: the head sees the mean of the patches behind a fresh norm, and the
    encoder's final norm is dropped. `fraction` of the labels: drawn anew with each of `draws`.
    """

    name: str
    train: TrainSection
    batch_size: int
    head_lr: float | None = None
    head_std: float = 0.01
    mean_patches: bool = False
    drop_path: float = 0.0
    mixing: Mixing | None = None
    smoothing: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0
    resample: str = "bilinear"
    fraction: float = 1.0
    draws: int = 1


def transformer(*, lr: float, layer_decay: float, epochs: int, warmup: float) -> TrainSection:
    """The rates that MAE and BEiT fine-tune ViTs with."""
    settings = {"lr": lr, "betas": (0.9, 0.999), "weight_decay": 0.05, "layer_decay": layer_decay}
    return TrainSection(
        backbone=OWN,
        optimizer=Entry("adamw", settings),
        epochs=epochs,
        warmup_epochs=warmup,
        final_lr=1e-6,
    )


def convolutional(*, lr: float, epochs: int, nesterov: bool = False) -> TrainSection:
    """SGD with momentum, no decay, cosine to 0."""
    settings = {"lr": lr, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.0}
    return TrainSection(backbone=OWN, optimizer=Entry("sgd", settings), epochs=epochs)


# facebookresearch/mae, FINETUNE.md; the defaults of main_finetune.py are others
MAE_BASE = TuneSettings(
    name="MAE ViT-B",
    train=transformer(lr=5e-4, layer_decay=0.65, epochs=100, warmup=5),
    batch_size=1024,
    head_std=2e-5,
    mean_patches=True,
    drop_path=0.1,
    mixing=Mixing(mixup=0.8, cutmix=1.0),
    smoothing=0.1,
    jitter=0.4,
    erase=0.25,
    resample="bicubic",
)
MAE_LARGE = replace(
    MAE_BASE,
    name="MAE ViT-L",
    train=transformer(lr=1e-3, layer_decay=0.75, epochs=50, warmup=5),
    drop_path=0.2,
)
# microsoft/unilm, beit: ViT-B, 4e-3 for 1024 samples
BEIT_BASE = replace(
    MAE_BASE,
    name="BEiT-B",
    train=transformer(lr=1e-3, layer_decay=0.65, epochs=100, warmup=20),
)
# lightly's benchmark of ImageNet, after SimCLR
RESNET = TuneSettings(name="ResNet", train=convolutional(lr=0.05, epochs=100), batch_size=256)
# Chen et al. 2020 (SimCLR), appendix B.5
SIMCLR_1 = TuneSettings(
    name="SimCLR 1 %",
    train=convolutional(lr=0.05, epochs=60, nesterov=True),
    batch_size=4096,
    fraction=0.01,
)
SIMCLR_10 = replace(
    SIMCLR_1,
    name="SimCLR 10 %",
    train=convolutional(lr=0.05, epochs=30, nesterov=True),
    fraction=0.1,
)
# facebookresearch/swav, eval_semisup.py
SWAV_1 = TuneSettings(
    name="SwAV 1 %",
    train=TrainSection(
        backbone=OWN,
        optimizer=momentum_sgd(0.02),
        epochs=20,
        schedule="multistep",
        milestones=(12, 16),
        gamma=0.2,
    ),
    batch_size=256,
    head_lr=5.0,
    fraction=0.01,
)
SWAV_10 = replace(
    SWAV_1,
    name="SwAV 10 %",
    train=SWAV_1.train.model_copy(update={"optimizer": momentum_sgd(0.01)}),
    head_lr=0.2,
    fraction=0.1,
)
