"""The headers of tar members: names, keys and extensions, as webdataset takes them apart."""

import io
import re
import tarfile

from ..errors import SampleError

BLOCK = tarfile.BLOCKSIZE
PLAIN, MAGIC_AT = b"ustar\x0000", 257  # a POSIX header without extensions of its own
NAME_BYTES = 100
PREFIX_AT = 345  # of the folders of a name of more than 100 bytes
# the key ends at the first dot of the base name, as in webdataset
FOREIGN = re.compile("[\udc80-\udcff]")  # bytes, as `surrogateescape` keeps them
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


def parse_header(header: bytes) -> tarfile.TarInfo:
    """The member that a tar header describes; long names stand in blocks before the last one.

    Raises:
        SampleError: the header is damaged.
    """
    try:
        if len(header) == BLOCK:
            return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        with tarfile.open(fileobj=io.BytesIO(header), mode="r:", encoding="utf-8") as tar:
            member = tar.next()  # the first; a second would look beyond the header
    except tarfile.TarError as error:
        raise SampleError(f"damaged tar header ({error})") from error
    if member is None:
        raise SampleError("damaged tar header (it is the end mark of the tar)")
    return member


def member_key(header: bytes) -> str:
    """The key of the sample that a tar header belongs to.

    Raises:
        SampleError: the header is damaged.
    """
    if len(header) == BLOCK and header.startswith(PLAIN, MAGIC_AT):
        # tarfile's parser takes longer than reading the sample; nothing but the name is needed
        base = header.rfind(b"/", 0, NAME_BYTES) + 1
        dot = header.find(b".", base, NAME_BYTES)
        if dot > base and header[:dot].isascii() and not header[PREFIX_AT]:
            return header[:dot].decode()  # almost always; what follows says the same
        name = header[:NAME_BYTES].rstrip(b"\0")
        if header[PREFIX_AT]:
            name = header[PREFIX_AT : PREFIX_AT + 155].rstrip(b"\0") + b"/" + name
        full = name.decode("utf-8", "surrogateescape")
    else:
        full = parse_header(header).name
    parts = split_name(full)
    if parts is None:
        raise SampleError(f"damaged tar header (the name {full!r} has no key)")
    return parts[0]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member (`a/b.left.jpg` -> `a/b`, `left.jpg`); None without either."""
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot > base:  # almost always; the expression, which says the same, takes longer than that
        return escaped(name[:dot]), name[dot + 1 :]
    match = NAME.fullmatch(name)
    if match is None:
        return None
    return escaped(match[1]), match[2]


def escaped(name: str) -> str:
    """A name with bytes of no UTF-8 as %E9: they arrive as lone surrogates, which no hash takes.

    So names that differ stay different; one sign for all such bytes would make them one.
    """
    if name.isascii():
        return name
    return FOREIGN.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)
