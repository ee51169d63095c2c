"""Keys out of tar headers: the quick way says what tarfile's parser says."""

import tarfile

import numpy as np
import pytest

from sslpipe.errors import SampleError
from sslpipe.shards.tar_headers import member_key, parse_header, split_name

NAMES = [
    "a.jpg", "a/b.jpg", "a.b/c.d.e", "./c.jpg", "a/.hidden", ".x", "plain", "d.ir/plain", "a/b.",
    "ü/é.x", "a//b.c", "f" * 96 + ".jpg", "f" * 95 + ".jpeg", "d" * 60 + "/" + "f" * 60 + ".jpg",
    "d.d" * 30 + "/" + "f" * 20 + ".jpg", "g" * 99 + "/.jpg", "g/" * 49 + "f.x",
]  # fmt: skip


def header_of(name):
    return tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def by_parser(header):
    """The key as tarfile finds the name; None: it has none."""
    found = split_name(parse_header(header).name)
    return found and found[0]


def by_us(header):
    try:
        return member_key(header)
    except SampleError:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_those_of_the_parser(name):
    header = header_of(name)
    assert by_us(header) == by_parser(header)


def test_keys_of_names_of_any_bytes_are_those_of_the_parser():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        letters = rng.choice(list(b"ab./\xc3\xbc\xff"), rng.integers(1, 101))
        name = bytes(letters.astype(np.uint8)).rstrip(b"/")
        if name:
            header = header_of(name.decode("utf-8", "surrogateescape"))
            assert by_us(header) == by_parser(header)
            found += by_us(header) is not None
    assert found > 500


def test_a_name_without_a_key_is_told():
    with pytest.raises(SampleError, match="the name 'plain' has no key"):
        member_key(header_of("plain"))


@pytest.mark.parametrize("at", [0, 3, 6, 7])
def test_a_header_that_was_changed_has_another_key(at):
    """At the key and at the dot that ends it; its id tells, as no two keys have one."""
    header = bytearray(header_of("abcdef/0001.jpg"))
    whole = by_us(bytes(header))
    header[at] ^= 1
    assert by_us(bytes(header)) != whole
