"""Two ways over a tar: every byte once and hashed, or from header to header."""

import hashlib
from typing import BinaryIO, Protocol

CHUNK = 1 << 20  # bytes read at once where they are only hashed


class Forward(Protocol):
    """What reading the members of a tar needs."""

    last: bytes  # what the last `read` returned

    def tell(self) -> int:
        """The position of the next byte that is read."""
        ...

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        ...

    def seek(self, position: int) -> None:
        """Go forward to a position, in bytes."""
        ...


class Skim:
    """Read the headers of a file and pass over what lies between."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.last = b""

    def tell(self) -> int:
        """The position of the next byte that is read."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end."""
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int) -> None:
        """Pass over the bytes up to `position`."""
        self._file.seek(position)


class HashedStream:
    """Read a file forward only, hashing every byte; `seek` reads over what lies between."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._at = 0
        self.last = b""  # what the last `read` returned

    def tell(self) -> int:
        """How many bytes were read so far."""
        return self._at

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end."""
        self.last = self._file.read(size)
        while len(self.last) < size and (more := self._file.read(size - len(self.last))):
            self.last += more  # sockets give what they have
        self._sha256.update(self.last)
        self._at += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        """Go forward to `position`, or to the end if that comes first."""
        assert position >= self._at, "a stream cannot go back"
        while self._at < position and self.read(min(CHUNK, position - self._at)):
            pass

    def drain(self) -> bool:
        """Read the rest; whether any of it is not zero."""
        found = False
        while rest := self.read(CHUNK):
            found = found or bool(rest.strip(b"\0"))
        return found

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of what was read."""
        return self._sha256.hexdigest()
