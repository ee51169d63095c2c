"""Labels of frames: k-means of cepstra or of a model's states, over whole recordings.

HuBERT's first and second iteration (arXiv:2106.07447, 3.1 and 4.2; fairseq, examples/hubert/
simple_kmeans): MiniBatchKMeans of scikit-learn on a part of the frames, then the nearest centre of
every frame. Letters: N frames of a batch, D numbers of a frame, K centres.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..batch import Batch
from ..device.handoff import find_device
from ..encoders.monitors import evaluating
from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import ExtraError, SslpipeError
from ..modalities.audio.crop import LONGEST, SoundCrop
from ..modalities.audio.decider import FIXED
from ..modalities.audio.frame_labels import MOST_CLASSES, FrameGrid, LabelledFrames
from ..modalities.audio.policy import CROP, crop_of
from ..pipeline import load
from ..recipe import Entry, Recipe
from ..recipe.schema import StreamSection, ViewSection
from ..shards.contents import index_of
from ..shards.manifest import Manifest, open_manifest
from .subjects import open_subject

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
TOGETHER = 2**23  # samples of a batch, padding counted: 9 minutes at 16 kHz
CEPSTRA_A_SECOND = 100
FITTED_TOGETHER = 10_000  # learn_kmeans.py, as all settings of the fit


@dataclass(frozen=True, slots=True, kw_only=True)
class CepstraSettings:
    """Frames of cepstra: every `shift` samples at `rate`, of `window` samples; None: 25 ms.

    Raises:
        SslpipeError: `shift` is no multiple of 10 ms.
    """

    rate: int = 16_000
    shift: int = 320
    window: int | None = None

    def __post_init__(self) -> None:
        if self.shift % max(1, self.rate // CEPSTRA_A_SECOND):
            raise SslpipeError(
                f"frame labels: shift = {self.shift} is no multiple of 10 ms, which are "
                f"{self.rate // CEPSTRA_A_SECOND} samples at {self.rate:,} Hz; set one of them"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How frames are clustered into K = `classes`; centres are fitted to `fit` frames at most.

    Raises:
        SslpipeError: too few or too many classes, or fewer frames than classes.
    """

    classes: int = 100
    fit: int = 1_000_000
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MOST_CLASSES:
            raise SslpipeError(
                f"frame labels: {self.classes} clusters; there are 2 to {MOST_CLASSES:,}"
            )
        if self.fit < self.classes:
            raise SslpipeError(
                f"frame labels: {self.fit:,} frames are fewer than {self.classes} clusters; fit "
                "to more"
            )


class FrameSource(NamedTuple):
    """What is clustered: views of whole recordings, and how their frames become numbers."""

    recipe: Recipe  # one group, global
    grid: FrameGrid
    frames: Callable[[Batch], Iterator[F32]]  # (N, D) of each recording of a batch


def frame_labels(
    shards: str | Path,
    subject: str | None,
    layer: int | None,
    cepstra: CepstraSettings = CepstraSettings(),
    settings: ClusterSettings = ClusterSettings(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelledFrames:
    """Cluster the frames of a set and label all of them.

    subject: None clusters cepstra; else a run, of whose encoder the states after `layer` layers
    are clustered. progress: hears how many recordings are labelled, of how many.

    Raises:
        SslpipeError: settings or subject do not suit, or there are fewer frames than clusters.
        ShardError: what is wrong with the shards.
        ExtraError: scikit-learn is not installed.
    """
    if subject is None and layer is not None:
        raise SslpipeError(f"frame labels: --layer {layer} is one of a run's; name it by --of RUN")
    if subject is not None and cepstra != CepstraSettings():
        raise SslpipeError(
            f"frame labels: --rate, --shift and --window are of MFCC, and --of {subject} has its "
            "own; leave them out"
        )
    manifest = open_manifest(shards)
    source = (
        of_cepstra(manifest, cepstra, settings)
        if subject is None
        else of_layer(manifest, subject, layer, settings)
    )
    centres = fitted(source, manifest, settings)
    found: list[tuple[int, I64]] = []
    for uid, frames_ND in walk(source, manifest, settings, order="sequential"):
        found.append((uid, centres.predict(frames_ND).astype(np.int64)))
        progress(len(found), manifest.samples)
    found.sort(key=lambda each: each[0])
    lengths = np.array([len(labels) for _, labels in found], dtype=np.int64)
    return LabelledFrames(
        source.grid,
        np.array([uid for uid, _ in found], dtype=np.int64),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([labels for _, labels in found]).astype(np.uint16),
    )


def fitted(source: FrameSource, manifest: Manifest, settings: ClusterSettings) -> Any:
    """Fit centres to the frames of recordings in random order, until there are enough.

    Raises:
        SslpipeError: there are fewer frames than centres.
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ExtraError(
            "frame labels: scikit-learn is not installed; pip install 'sslpipe[train]'"
        ) from error
    parts: list[F32] = []
    for _, frames_ND in walk(source, manifest, settings, order="global"):
        parts.append(frames_ND)
        if sum(map(len, parts)) >= settings.fit:
            break
    frames_ND = np.concatenate(parts)[: settings.fit]
    if len(frames_ND) < settings.classes:
        raise SslpipeError(
            f"{manifest.folder}: has {len(frames_ND):,} frames, fewer than {settings.classes} "
            "clusters; ask for fewer"
        )
    return MiniBatchKMeans(
        settings.classes, batch_size=FITTED_TOGETHER, n_init=20, max_no_improvement=100,
        reassignment_ratio=0.0, tol=0.0, random_state=settings.seed,
    ).fit(frames_ND)  # fmt: skip


def walk(
    source: FrameSource, manifest: Manifest, settings: ClusterSettings, *, order: str
) -> Iterator[tuple[int, F32]]:
    """The uid and the frames of each recording, once."""
    stream = source.recipe.stream.model_copy(update={"order": order, "seed": settings.seed})
    recipe = source.recipe.model_copy(update={"stream": stream})
    device = find_device(settings.device)
    with load(recipe, shards=manifest, device=device, rank=0, world_size=1, epochs=1) as pipe:
        for batch in pipe:
            uids = batch.uids.tolist()
            yield from (
                (uid, frames)
                for uid, frames, valid in zip(
                    uids, source.frames(batch), batch.valid.tolist(), strict=True
                )
                if valid
            )


def of_cepstra(
    manifest: Manifest, chosen: CepstraSettings, settings: ClusterSettings
) -> FrameSource:
    """Frames of MFCCs, which HuBERT's first iteration clusters (arXiv:2106.07447, section IV)."""
    window = chosen.window or chosen.rate // 40
    every = chosen.shift * CEPSTRA_A_SECOND // chosen.rate
    op = Entry("MFCC", {"window": window, "shift": chosen.shift, "every": every})
    grid = FrameGrid(
        chosen.rate, chosen.shift, window, settings.classes, f"MFCC of {manifest.fingerprint}"
    )

    def frames(batch: Batch) -> Iterator[F32]:
        real = batch.lengths["global"][0].tolist()
        for view_CFT, count in zip(batch.views["global"][0], real, strict=True):
            yield view_CFT[0, :, :count].T.cpu().numpy()

    return FrameSource(whole_recordings(manifest, chosen.rate, {}, [op]), grid, frames)


def of_layer(
    manifest: Manifest, subject: str, layer: int | None, settings: ClusterSettings
) -> FrameSource:
    """States of a model, of recordings that it sees whole.

    It sees one at a time, as officially (dump_hubert_feature.py): the first layer's group norm is
    over time, so zeros behind a recording would change all of its states.

    Raises:
        SslpipeError: it is no model of waveforms, or has no such layer.
    """
    opened = open_subject(subject)
    encoder, device = opened.encoder, find_device(settings.device)
    if not isinstance(encoder, Wav2Vec2Encoder):
        raise SslpipeError(
            f"{subject}: its encoder is a {type(encoder).__name__}, which makes no frames of "
            "waveforms; give a run of wav2vec2 or hubert"
        )
    depth = len(encoder.encoder["layers"])  # type: ignore[arg-type]
    if layer is None or not 1 <= layer <= depth:
        given = "which layer? add" if layer is None else f"--layer {layer}; give"
        raise SslpipeError(f"{subject}: {given} --layer with one of its encoder's, 1 to {depth}")
    group = next(view for view in opened.recipe.views.values())
    crop = crop_of("wave", group.ops)
    grid = FrameGrid(
        crop.rate, encoder.hop, encoder.field, settings.classes,
        f"layer {layer} of {opened.digest} of {manifest.fingerprint}",
    )  # fmt: skip
    encoder.to(device)

    @torch.inference_mode()
    def frames(batch: Batch) -> Iterator[F32]:
        lengths = batch.lengths["global"][0].clamp_min(encoder.field).tolist()
        with evaluating(encoder):
            for wave_T, length in zip(batch.views["global"][0], lengths, strict=True):
                normed_1NC = encoder.normed(encoder.features(wave_T[None, :length]))
                (states_ND,) = encoder.context(normed_1NC, layers=layer)
                yield states_ND.float().cpu().numpy()

    fixed = [op for op in group.ops[1:] if op.name in FIXED]
    channels = {"channels": crop.channels}
    return FrameSource(whole_recordings(manifest, crop.rate, channels, fixed), grid, frames)


def whole_recordings(
    manifest: Manifest, rate: int, crop: dict[str, Any], ops: list[Entry]
) -> Recipe:
    """A recipe whose views are recordings from end to end, with zeros behind the shorter ones.

    Raises:
        SslpipeError: the set is none of sound, or the longest recording is too long to be laid out.
    """
    longest = longest_of(manifest, rate)
    settings = {"samples": longest, "rate": rate, "place": "start", **crop}
    SoundCrop(**settings)
    batch_size = max(1, min(64, TOGETHER // longest, manifest.samples))
    return Recipe(
        path="frame labels",
        modality="audio",
        stream=StreamSection(batch_size=batch_size, remainder="short", on_bad="raise"),
        views={"global": ViewSection(ops=(Entry(CROP, settings), *ops))},
    )


def longest_of(manifest: Manifest, rate: int) -> int:
    """Samples at `rate` of the longest recording of a set.

    Raises:
        SslpipeError: the set is none of sound, or it is too long.
    """
    if manifest.modality != "audio":
        raise SslpipeError(f"{manifest.folder}: holds {manifest.modality}, and no sound")
    longest = 1
    for shard in manifest.shards:
        frames, rates = index_of(manifest, shard).samples["extent"][:, :2].T.astype(np.int64)
        longest = max(longest, int((-(-frames * rate // np.maximum(rates, 1))).max(initial=1)))
    if longest > LONGEST:
        raise SslpipeError(
            f"{manifest.folder}: its longest recording has {longest:,} samples at {rate:,} Hz; "
            f"{LONGEST:,} can be laid out, cut it before packing"
        )
    return longest
