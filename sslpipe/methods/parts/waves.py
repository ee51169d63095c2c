"""What methods that hide frames of waveforms share: wav2vec 2.0 and HuBERT."""

import torch
from torch import Tensor, nn

from ...batch import Batch, BatchSpec, MaskSpec
from ...encoders.wav2vec2 import Wav2Vec2Encoder
from ...errors import ContractError


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:
        """Give x itself, as a view."""
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient of x by the scale, which has none."""
        return grads[0] * ctx.scale, None  # type: ignore[attr-defined]


def conv_features(encoder: Wav2Vec2Encoder, waves_BT: Tensor, grad: float) -> Tensor:
    """What the convolutions make, (B, N, C); gradients that reach them are multiplied by `grad`."""
    scaled: Tensor = ScaledGradient.apply(encoder.features(waves_BT), grad)
    return scaled


def real_frames(encoder: Wav2Vec2Encoder, batch: Batch, mask: MaskSpec) -> Tensor | None:
    """Which frames see no padding, (B, N) bool; None: all. A batch of a bucket has fewer frames."""
    if mask.view not in batch.lengths:
        return None
    frames = encoder.frames(batch.views[mask.view].shape[-1])
    return encoder.real_frames(batch.lengths[mask.view][0], frames)


def of_waves(method: str, encoder: nn.Module) -> Wav2Vec2Encoder:
    """Raise a ContractError unless the encoder is one of waveforms that shows its frames."""
    if not isinstance(encoder, Wav2Vec2Encoder):
        raise ContractError(
            f"{method}: a {type(encoder).__name__} makes no frames of waveforms that can be "
            "hidden; set train.backbone to wav2vec2"
        )
    return encoder


def check_frames(method: str, encoder: Wav2Vec2Encoder, spec: BatchSpec, mask: MaskSpec) -> None:
    """Raise a ContractError unless the mask is over the frames that the encoder makes."""
    samples = spec.views[mask.view].size("T")
    if mask.grid != (encoder.frames(samples),):
        raise ContractError(
            f"{method}: masks.spans covers {mask.patches} steps, but the encoder makes "
            f"{encoder.frames(samples)} frames of {samples} samples; set its patch_size to "
            f"{encoder.hop} and receptive_field to {encoder.field}"
        )
