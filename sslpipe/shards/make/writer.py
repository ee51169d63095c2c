"""Write one tar and its index in a single pass.

The bytes are those of `webdataset.TarWriter`, which would have to be read again for the index: that
takes as long as writing. tarfile makes the headers; all times, owners and modes are fixed.
"""

import hashlib
import os
import zlib
from collections.abc import Mapping
from tarfile import RECORDSIZE, TarInfo
from typing import BinaryIO

import numpy as np

from ...rng import sample_id
from ..index import BLOCK, EXTRA_BLOCKS, GPU_JPEG, RECORD, Index
from ..scan import Row, is_gpu_jpeg
from .plan import LABEL


class ShardWriter:
    """Writes samples to an open file, which stays open; `finish` gives the index."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.hash = hashlib.sha256()
        self.rows: list[Row] = []
        self.extensions: dict[str, int] = {}

    def add(
        self,
        key: str,
        ext: str,
        payload: bytes,
        *,
        label: int | None,
        size: tuple[int, int],
        extras: Mapping[str, bytes],
    ) -> None:
        """Write a sample: payload `key.ext`, its label if there is one, and other members.

        Members stand in the order of their extensions. `size`: width and height.
        """
        members = {**extras, ext: payload}
        if label is not None:
            members[LABEL] = str(label).encode()
        for name, data in sorted(members.items()):
            header = header_of(f"{key}.{name}", len(data))
            self.write(header)
            if name == ext:
                flags = (len(header) // BLOCK - 1) << EXTRA_BLOCKS
                flags |= GPU_JPEG if is_gpu_jpeg(data) else 0
                number = self.extensions.setdefault(ext, len(self.extensions))
                place = self.offset, sample_id(key), len(data), zlib.crc32(data)
                self.rows.append((*place, -1 if label is None else label, *size, number, flags))
            self.write(data)
            self.write(bytes(-len(data) % BLOCK))

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.offset += len(data)

    def finish(self) -> Index:
        """Write the end mark and wait until all is on the disk."""
        self.write(bytes(2 * BLOCK))
        self.write(bytes(-self.offset % RECORDSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())  # a record of a finished shard must outlive a power failure
        rows = np.array(self.rows, RECORD)
        return Index(rows, tuple(self.extensions), self.offset, self.hash.hexdigest())


def header_of(name: str, size: int) -> bytes:
    """The tar header of a member, with its long name if it has one."""
    info = TarInfo(name)
    info.size, info.mode = size, 0o444
    info.uname = info.gname = "sslpipe"
    return info.tobuf()
