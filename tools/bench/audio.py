"""Seconds of sound per core-second against loops as they are usually written; what log-mel costs.

    python tools/bench/audio.py [--files 48] [--seconds 15] [--passes 3]

Recordings are made here: FLAC at 16 and 44.1 kHz. All sides read the same files from the page
cache, in one process with one thread, and give batches of float32 tensors; CPU time is counted.
`hf`: soundfile.read of whole files, as `datasets` decodes them, a random crop, the feature
extractor of transformers. `loop`: soundfile.read, resampling of what was read, a random crop,
torchaudio's fbank if it can be imported, as a Dataset under a DataLoader does it.
"""

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from provenance import row
from rich.console import Console
from rich.table import Table

import sslpipe
from sslpipe.modalities.audio.codec import AudioCodec
from sslpipe.modalities.audio.fbank import Fbank
from sslpipe.modalities.audio.op import SoundRows, SoundShape
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack

BATCH, RATE = 16, 16_000
Batches = Iterator[torch.Tensor]
KINDS = {  # name -> rate of the files, seconds of a crop, ops behind it
    "2 s of 16 kHz": (16_000, 2.0, ""),
    "2 s of 44.1 kHz": (44_100, 2.0, ""),
    "whole files of 16 kHz": (16_000, 0.0, ""),
    "fbank of 10 s of 16 kHz": (16_000, 10.0, ", RemoveMean, Fbank"),
}


def make_files(folder: Path, count: int, seconds: float, rate: int) -> list[Path]:
    """FLAC files of speech-like noise: bursts of a few tones."""
    rng = np.random.default_rng(rate)
    t, paths = np.arange(round(seconds * rate)) / rate, []
    folder.mkdir()
    for number in range(count):
        tones = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(100, 3_000, 4))
        sound = tones * (0.05 + 0.1 * np.abs(np.sin(2 * np.pi * 3 * t)))
        sound += rng.normal(0, 0.003, len(t))
        paths.append(folder / f"{number:04d}.flac")
        soundfile.write(paths[-1], 0.5 * sound, rate)
    return paths


def ours(shards: Path, size: float, ops: str) -> Batches:
    """Batches of the pipeline, in this process."""
    text = f"""
modality: audio
stream: {{batch_size: {BATCH}}}
views: {{global: {{ops: [Crop: {{seconds: {size}, rate: {RATE}}}{ops}]}}}}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
    with sslpipe.load(parse_recipe(text, path="bench"), shards=shards, device="cpu") as pipe:
        while True:
            for batch in pipe:
                yield batch.views["global"][0]


def cropped(sound: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    length = round(size * RATE)
    start = int(rng.integers(0, len(sound) - length + 1))
    return sound[start : start + length]


def whole(path: Path) -> np.ndarray:
    """A file at our rate, float32."""
    sound, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
    return sound if rate == RATE else soxr.resample(sound, rate, RATE)


def hf(paths: list[Path], size: float, ops: str) -> Batches:
    """Feature extractors of transformers on arrays."""
    from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

    rng = np.random.default_rng(0)
    extract = (
        ASTFeatureExtractor(max_length=1_024)
        if ops
        else Wav2Vec2FeatureExtractor(do_normalize=False)
    )
    while True:
        for start in range(0, len(paths) - BATCH + 1, BATCH):
            sounds = [cropped(whole(p), size, rng) for p in paths[start : start + BATCH]]
            yield extract(sounds, sampling_rate=RATE, return_tensors="pt")["input_values"]


def loop(paths: list[Path], size: float, ops: str) -> Batches:
    """One sample after another, then torch.stack; torchaudio's functions if there are any."""
    rng = np.random.default_rng(0)
    try:
        from torchaudio.compliance.kaldi import fbank
    except ImportError:
        fbank = None

    def item(path: Path) -> torch.Tensor:
        wave = torch.from_numpy(cropped(whole(path), size, rng))[None]
        if not ops or fbank is None:
            return wave[0]
        return fbank(
            wave - wave.mean(), htk_compat=True, sample_frequency=RATE, use_energy=False,
            window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
        )  # fmt: skip

    while True:
        for start in range(0, len(paths) - BATCH + 1, BATCH):
            yield torch.stack([item(path) for path in paths[start : start + BATCH]])


def speed(batches: Batches, count: int, size: float) -> float:
    """Seconds of sound per second of CPU time, after one batch."""
    next(batches)
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return count * BATCH * size / (time.process_time() - start)


def fastest(works: Sequence[Callable[[], object]], tries: int = 15) -> list[float]:
    """CPU seconds of each, by turns: what else a machine does slows all of them down alike."""
    found = []
    for _ in range(tries):
        for work in works:
            start = time.process_time()
            work()
            found.append(time.process_time() - start)
    return [min(found[n :: len(works)]) for n in range(len(works))]


def log_mel() -> tuple[float, float, float]:
    """Microseconds per second of sound: Kaldi's fbank, and its Fourier transforms alone.

    These twice: of all windows of a batch, 26 MB, in one call; and of as many as stay in the cache.
    """
    waves = torch.randn(BATCH, 10 * RATE)
    rows = SoundRows(torch.empty(BATCH, 0), torch.full((BATCH,), 10 * RATE),
                     SoundShape("T", (10 * RATE,), RATE))  # fmt: skip
    op = Fbank()
    frames = waves.unfold(1, op.window, op.shift).contiguous()
    spent = fastest(
        [
            lambda: op.apply(waves, rows),
            lambda: torch.fft.rfft(frames, n=op.fft),
            lambda: [torch.fft.rfft(frames[:1], n=op.fft) for _ in frames],
        ]
    )
    whole, at_once, cached = (1e6 * each / BATCH / 10 for each in spent)
    return whole, at_once, cached


def main_process(shards: Path, batches: int) -> float:
    """Microseconds of CPU time of this process per sample of 2 s, two workers beside it.

    With span masks and distractors. Shares are planned for more and more steps at once: after 64.
    """
    text = f"""
modality: audio
stream: {{batch_size: {BATCH}}}
views: {{wave: {{ops: [Crop: {{seconds: 2.0, rate: {RATE}}}]}}}}
masks: {{spans: {{view: wave, patch_size: 320, receptive_field: 400, sampler: spans}}}}
targets: {{distractors: {{view: wave, task: {{distractors: {{count: 100, mask: spans}}}}}}}}
run: {{workers: 2, prefetch: 2, threads: 1}}
"""
    with sslpipe.load(parse_recipe(text, path="bench"), shards=shards, device="cpu") as pipe:
        loaded = (batch for _ in iter(int, 1) for batch in pipe)
        for _ in range(64):
            next(loaded)
        start = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(batches):
            next(loaded)
        end = resource.getrusage(resource.RUSAGE_SELF)
    spent = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return 1e6 * spent / batches / BATCH


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--files", type=int, default=48)
    options.add_argument("--seconds", type=float, default=15.0)
    options.add_argument("--passes", type=int, default=3)
    chosen = options.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch.set_num_threads(1)
    table, told = Table("seconds of sound per core-second", "sslpipe", "hf", "loop"), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths, shards = {}, {}
        for rate in (16_000, 44_100):
            paths[rate] = make_files(folder / f"{rate}", chosen.files, chosen.seconds, rate)
            shards[rate] = folder / f"s{rate}"
            pack(folder / f"{rate}", shards[rate], PackSettings(codec=AudioCodec()))
        batches = chosen.passes * chosen.files // BATCH
        for name, (rate, size, ops) in KINDS.items():
            size = size or chosen.seconds
            found = [
                speed(ours(shards[rate], size, ops), batches, size),
                speed(hf(paths[rate], size, ops), batches, size),
                speed(loop(paths[rate], size, ops), batches, size),
            ]
            table.add_row(name, *(f"{each:,.0f}" for each in found))
            told.append(f"{name} {found[0]:,.0f} (hf {found[1]:,.0f}, loop {found[2]:,.0f})")
        spent = main_process(shards[16_000], 20 * batches)
    mel, fft, cached = log_mel()
    Console().print(table)
    told.append(
        f"fbank {mel:.0f} us per second of sound, its FFT alone {fft:.0f}, cached {cached:.0f}"
    )
    told.append(f"main process {spent:.0f} us per sample of 2 s with span masks and distractors")
    print(row("; ".join(told), "soundfile", "soxr", "transformers"))


if __name__ == "__main__":
    main()
