"""Encoders of sound: waveforms (B, T) or spectrograms (B, C, F, T) become features (B, D).

A `vit` and a `cifar_resnet` take spectrograms, too, as pictures of F x T pixels.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from ..batch import ViewSpec
from .protocols import Encoder
from .wav2vec2 import Wav2Vec2Encoder


class AudioNTT(Encoder):
    """BYOL-A's network: three convolutions that halve both axes, then an MLP on each time step.

    Niizumi et al. 2021, arXiv:2103.06695; nttcslab/byol-a, AudioNTT2020, with its names. Features
    are the maximum over time plus the mean. base_dim: of the convolutions; dropout: within the MLP.
    Defaults are BYOL-A's; weights start as torch's do.
    """

    patch_size = 8  # three pools of 2

    def __init__(
        self, view: ViewSpec, *, dim: int = 2048, base_dim: int = 64, dropout: float = 0.3
    ) -> None:
        super().__init__()
        mels = require_spectrogram(view) // self.patch_size
        if not mels or view.size("T") < self.patch_size:
            raise ValueError(
                f"views {view.group!r} of {view.shown} are smaller than {self.patch_size} x "
                f"{self.patch_size}, which three pools make one of; make larger spectrograms"
            )
        self.dim = dim
        widths = (view.size("C"), base_dim, base_dim, base_dim)
        self.features = nn.Sequential(
            *(part for i in range(3) for part in pooled_conv(widths[i], widths[i + 1]))
        )
        self.fc = nn.Sequential(
            nn.Linear(base_dim * mels, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim),
            nn.ReLU(),
        )  # fmt: skip

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give features of spectrograms (B, C, F, T): (B, D)."""
        x_BCFT: Tensor = self.features(images_BCHW)
        steps_BTD: Tensor = self.fc(x_BCFT.permute(0, 3, 2, 1).flatten(2))
        return steps_BTD.amax(1) + steps_BTD.mean(1)


def pooled_conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution, batch norm, ReLU, and the maximum of 2 x 2."""
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)


def require_spectrogram(view: ViewSpec) -> int:
    """How many frequencies the spectrograms of a group have.

    Raises:
        ValueError: its views are no spectrograms.
    """
    if view.axes != "CFT":
        raise ValueError(
            f"views {view.group!r} are {view.shown} of axes {view.axes}, not spectrograms of axes "
            "CFT; choose a backbone for them"
        )
    return view.size("F")


AUDIO_ENCODERS: Mapping[str, Callable[..., Encoder]] = MappingProxyType(
    {"audio_ntt": AudioNTT, "wav2vec2": Wav2Vec2Encoder}
)
