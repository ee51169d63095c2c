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

from ...rng import sample_id
from ..codec import Extent
from ..index import Index, IndexBuilder, IndexedMember
from ..scan import LABEL
from ..tar_headers import BLOCK


class ShardWriter:
    """Writes samples to an open file, which stays open; `finish` gives the index."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.hash = hashlib.sha256()
        self.index = IndexBuilder()

    def add(
        self,
        key: str,
        ext: str,
        payload: bytes,
        *,
        label: int | None,
        extent: Extent,
        flags: int,
        extras: Mapping[str, bytes],
    ) -> None:
        """Write a sample: payload `key.ext`, its label if there is one, and other members.

        Members stand in the order of their extensions. `extent` and `flags`: the codec's.
        """
        members = {**extras, ext: payload}
        if label is not None:
            members[LABEL] = str(label).encode()
        self.index.add(
            sample_id(key),
            [self.write_member(key, name, data) for name, data in sorted(members.items())],
            payload=ext,
            extent=extent,
            label=-1 if label is None else label,
            flags=flags,
        )

    def write_member(self, key: str, ext: str, data: bytes) -> IndexedMember:
        """Write one member with its header, and say where it lies."""
        header = header_of(f"{key}.{ext}", len(data))
        self.write(header)
        blocks = len(header) // BLOCK
        member = IndexedMember(ext, self.offset, len(data), zlib.crc32(data), blocks)
        self.write(data)
        self.write(bytes(-len(data) % BLOCK))
        return member

    def write(self, data: bytes) -> None:
        """Write bytes to the tar, and count and hash them."""
        self.file.write(data)
        self.hash.update(data)
        self.offset += len(data)

    def finish(self) -> Index:
        """Write the end mark and wait until all is on the disk."""
        self.write(bytes(2 * BLOCK))
        self.write(bytes(-self.offset % RECORDSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())  # a record of a finished shard must outlive a power failure
        return self.index.finish(self.offset, self.hash.hexdigest())


def header_of(name: str, size: int) -> bytes:
    """The tar header of a member, with its long name if it has one."""
    info = TarInfo(name)
    info.size, info.mode = size, 0o444
    info.uname = info.gname = "sslpipe"
    return info.tobuf()
