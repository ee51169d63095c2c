"""A label for each frame of each recording, kept in one file: what HuBERT guesses.

    uids    (S,) int64, rising        the recordings
    ends    (S + 1,) int64            those of recording s are labels[ends[s]:ends[s + 1]]
    labels  (N,) uint16               classes
    grid    JSON                      rate, shift, field, classes, origin; format, 1 where missing

An .npz of NumPy. Frame f of a recording is about the samples from f * shift on, `field` of them, at
`rate`. They are found by uid, so the tars stay as they are, as with `stream.labels`.
Letters: S recordings, N frames of all.
"""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...batch import IGNORED
from ...errors import ShardError
from ...process import regular_file
from ...shards.side_files import other_format, written_whole

I64 = npt.NDArray[np.int64]
FORMAT = 1
MOST_CLASSES = 2**16


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Which samples frames are about, and how many classes their labels have."""

    rate: int
    shift: int
    field: int
    classes: int
    origin: str  # what was clustered, in words


@dataclass(frozen=True, slots=True)
class LabelledFrames:
    """The labels of the frames of a set."""

    grid: FrameGrid
    uids: I64
    ends: I64
    labels: npt.NDArray[np.uint16]
    digest: str = ""  # of the file

    def at(self, uids: I64, first: I64, count: int) -> I64:
        """Labels of frames `first` (B,) to first + count of recordings: (B, count) int64.

        IGNORED behind the last frame of a recording.

        Raises:
            ShardError: a recording has none.
        """
        row = np.searchsorted(self.uids, uids).clip(max=max(len(self.uids) - 1, 0))
        lacking = uids[self.uids[row] != uids] if len(self.uids) else uids
        if len(lacking):
            raise ShardError(
                f"frame labels: uid {lacking[0]} has none; make them of this set, by `sslpipe "
                "frame-labels`"
            )
        place = (self.ends[row] + first)[:, None] + np.arange(count)
        inside = place < self.ends[row + 1][:, None]
        found = self.labels[np.where(inside, place, 0)].astype(np.int64)
        return np.where(inside, found, IGNORED)


def write_frame_labels(path: Path, found: LabelledFrames) -> None:
    """Write labels, whole or not at all."""
    said = np.array(json.dumps({**asdict(found.grid), "format": FORMAT}, sort_keys=True))
    with written_whole(path) as part, part.open("wb") as file:
        np.savez(file, uids=found.uids, ends=found.ends, labels=found.labels, grid=said)


def read_frame_labels(path: str) -> LabelledFrames:
    """The labels of a file, which is read once as long as it stays as it is.

    Raises:
        ShardError: it is missing, damaged, or no file of frame labels.
    """
    try:
        found = regular_file(path).stat()
        return read_once(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read ({error.strerror}); make it by `sslpipe frame-labels SHARDS "
            f"--out {path}`"
        ) from error


@lru_cache(maxsize=4)
def read_once(path: str, changed: int, size: int) -> LabelledFrames:
    """The labels of a file of a size that was last changed at a time.

    Raises:
        ShardError: it is no such file, of another format, or damaged.
    """
    data = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            said = json.loads(str(file["grid"]))
            if (number := said.pop("format", FORMAT)) != FORMAT:
                raise ShardError(f"{path}: {other_format(number, FORMAT, 'make them again')}")
            grid = FrameGrid(**said)
            columns = (file["uids"], file["ends"], file["labels"])
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ShardError(
            f"{path}: is no file of frame labels, or damaged; make it by `sslpipe frame-labels "
            f"SHARDS --out {path}`"
        ) from error
    return LabelledFrames(grid, *columns, hashlib.blake2b(data, digest_size=16).hexdigest())
