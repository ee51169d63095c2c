"""Recordings that tests make themselves, and what is done with them in several files."""

import io

import numpy as np
import soundfile

import sslpipe
from sslpipe.modalities.audio.codec import AudioCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.stream.reader import Sample

FORMATS = {
    "wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "float": ("WAV", "FLOAT"),
    "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip


def chirp(seconds, rate=16_000, channels=1, seed=0):
    """(n, channels) float32, a tone that rises in noise, each channel another one."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.stack(
        [0.3 * np.sin(2 * np.pi * (150 + 90 * c + 200 * t) * t) for c in range(channels)]
    )
    return (tone.T + rng.normal(0, 0.05, tone.T.shape)).astype(np.float32)


def encoded(samples, rate=16_000, kind="flac"):
    """The bytes of a file."""
    out = io.BytesIO()
    container, subtype = FORMATS[kind]
    soundfile.write(out, samples, rate, format=container, subtype=subtype)
    return out.getvalue()


def sample(data, extent=(0, 0, 0, 0)):
    """A sample as a worker has it."""
    return Sample(1, "a", -1, data, 0, extent)


def packed(folder, out, sounds, shard_bytes=100_000):
    """Pack name -> bytes."""
    folder.mkdir(exist_ok=True)
    for name, data in sounds.items():
        (folder / name).write_bytes(data)
    pack(folder, out, PackSettings(codec=AudioCodec(), shard_bytes=shard_bytes))
    return out


def load(recipe, shards, *overrides, **where):
    """A pipeline on the CPU."""
    parsed = parse_recipe(recipe, path="t.yaml", overrides=overrides)
    where = {"rank": 0, "world_size": 1, **where}
    return sslpipe.load(parsed, shards=shards, device="cpu", **where)
