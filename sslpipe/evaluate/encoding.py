"""One batch through one encoder: features, and what a ViT shows of its last blocks."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

from ..encoders import BlockEncoder
from ..encoders.tokens import PAD, TokenEncoder
from ..errors import SslpipeError

NONE = torch.empty(0)
BLOCKS = 4  # the last ones, whose class tokens are kept, as DINO's and DINOv2's linear probes do
PIXELS = 32  # a side
WINDOW, HOP = 256, 128  # samples of the spectrograms of waveforms
LEAST = 1e-6  # power of silence: of a 16-bit recording the noise of rounding is about this
BINS = 4096  # of counts of tokens
# of raw pixels, of text the counts of its tokens, of sound its spectrogram
BASELINES = ("pixels", "counts", "spectrogram", "frame")


class Shown(NamedTuple):
    """What an encoder gives of the valid samples of a batch; the last two may be empty."""

    features_BD: Tensor
    blocks_BLD: Tensor
    patches_BD: Tensor


def encoded(encoder: nn.Module, images_BCHW: Tensor, valid: Tensor) -> Shown:
    """Encode a batch; what comes lies on its device.

    Raises:
        SslpipeError: the encoder is built for views of another size.
    """
    try:
        if not isinstance(encoder, BlockEncoder):
            shown = Shown(encoder(images_BCHW), NONE, NONE)
        else:
            last = encoder.last_blocks(images_BCHW, BLOCKS)
            classes = NONE if last.classes is None else last.classes
            shown = Shown(last.features, classes, last.patches.mean(dim=1))
    except AssertionError as error:  # as timm refuses sizes
        shape = " x ".join(map(str, images_BCHW.shape[1:]))
        raise SslpipeError(
            f"evaluation: the encoder takes no views of {shape} ({error}); evaluate it at the size "
            "that it was built for"
        ) from error
    if valid.all():
        return Shown(*(column.float() for column in shown))
    kept = valid.to(shown.features_BD.device)
    return Shown(*(column[kept].float() if len(column) else column for column in shown))


def on_host(made: Mapping[str, Shown]) -> dict[str, Shown]:
    """Bring what encoders gave to the CPU."""
    return {name: Shown(*(column.cpu() for column in shown)) for name, shown in made.items()}


class Pixels(nn.Module):
    """The baseline of raw pixels: a view averaged down to at most 32 x 32, as one row.

    Of a clip it is the mean of its frames, which knows nothing of their order.
    """

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give (B, C * h * w); what is no picture is taken as it is."""
        if images_BCHW.ndim == 5:
            images_BCHW = images_BCHW.mean(2)
        if images_BCHW.ndim != 4:
            return images_BCHW.flatten(1).float()
        height, width = (min(side, PIXELS) for side in images_BCHW.shape[2:])
        return adaptive_avg_pool2d(images_BCHW, (height, width)).flatten(1)


class PooledSpectrogram(Pixels):
    """The baseline of sound: a log-spectrogram averaged down to at most 32 x 32, as one row."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give (B, f * t) of spectrograms (B, C, F, T), or of waveforms (B, T) by the log power."""
        if images_BCHW.ndim != 2:
            return super().forward(images_BCHW)
        waves_BT = pad(images_BCHW.float(), (0, max(0, WINDOW - images_BCHW.shape[1])))
        hann = torch.hann_window(WINDOW, device=waves_BT.device)
        spectrum_BFT = torch.stft(
            waves_BT, WINDOW, HOP, window=hann, center=False, return_complex=True
        )
        return super().forward((spectrum_BFT.abs().square() + LEAST).log()[:, None])


class TokenCounts(nn.Module):
    """The baseline of text: how often each token stands in a document, whatever the order.

    Ids above BINS share their counts with others (the hashing trick).
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bins = min(vocabulary, BINS)

    def forward(self, tokens_BM: Tensor) -> Tensor:
        """Give log(1 + n) of each id, (B, bins) float32; padding does not count."""
        counts_BK = torch.zeros(len(tokens_BM), self.bins, device=tokens_BM.device)
        real_BM = (tokens_BM != PAD).float()
        return counts_BK.scatter_add_(1, tokens_BM % self.bins, real_BM).log1p()


def baseline_of(encoder: nn.Module, modality: str) -> tuple[str, nn.Module]:
    """What an encoder must beat without being one: a name of BASELINES, and the features."""
    if isinstance(encoder, TokenEncoder):
        return "counts", TokenCounts(encoder.word.num_embeddings)
    if modality == "audio":
        return "spectrogram", PooledSpectrogram()
    return "frame" if modality == "video" else "pixels", Pixels()
