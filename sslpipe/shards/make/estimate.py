"""What packing would make and how long it would take, by a keyed sample; nothing is written."""

import time
from pathlib import Path

from ...errors import ShardError
from ...process import cores
from .inputs.found import Columns
from .listing import shuffled
from .pack import Inputs, find_sources, shard_prefix
from .plan import KEYED_SAMPLE, Check, Codec, Settings, cut, tar_bytes
from .report import Estimate
from .work import Fault, SizeJob, size_payloads


def estimate(
    inputs: Inputs,
    out: str | Path,
    *,
    codec: Codec,
    resize: int | None = None,
    quality: int = 90,
    check: Check = "decode",
    shard_bytes: int = 64 * 2**20,
    shard_samples: int | None = None,
    seed: int = 0,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    workers: int | None = None,
) -> Estimate:
    """What `pack` would make of its arguments, duplicates and failures included.

    Raises:
        ShardError: as `pack`, for inputs and settings.
    """
    settings = Settings(
        codec, shard_prefix(None, inputs), resize, quality, check, shard_bytes, shard_samples,
        seed, "none", 0, False,
    )  # fmt: skip
    ordered = shuffled(find_sources(inputs, Path(out), codec, columns).sources, seed)
    sample = ordered[:KEYED_SAMPLE]
    start = time.perf_counter()
    sized = size_payloads(SizeJob(sample, settings))
    each = (time.perf_counter() - start) / len(sample)
    if isinstance(sized, Fault):
        raise ShardError(f"{sized.what}: {sized.reason}")
    return Estimate(
        images=len(ordered),
        shards=len(cut(ordered, settings, sized.mean)),
        bytes_out=sum(tar_bytes(source, settings, sized.mean) for source in ordered),
        sampled=len(sample),
        seconds=each * len(ordered) / (workers or cores()),
    )
