"""What packing and verifying know of documents; see `shards.codec.Codec`."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from .vocabulary import document_of, is_object


class TextCodec:
    """Documents: `.txt` in UTF-8, or `.json` objects with a "text"."""

    modality = "text"
    extents = (
        "bytes",
        "tokens",
    )  # of the text by the rules of vocabulary.py; 0 tokens: not counted
    flag_bits: Mapping[str, int] = MappingProxyType({})
    measure = "bytes of text"
    bins = (64, 256, 1024, 4096, 16384, 65536, 262144)
    extensions = frozenset({"txt", "json"})
    refused_options: Mapping[str, str] = MappingProxyType(
        {
            "--resize": "documents are not resized; leave it out",
            "--dedupe near": "documents have no perceptual hash; use --dedupe exact",
            "--fps": "documents have no frames of pictures; leave it out",
        }
    )
    shrunk_extension = "txt"
    version = "text 1"

    def measured(self, extents: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The bytes of each document."""
        return extents[:, 0].astype(np.int64)

    def extension(self, data: bytes) -> str:
        """`json` for an object, else `txt`.

        Raises:
            SampleError: it is no text.
        """
        document_of(data)
        return "json" if is_object(data) else "txt"

    def extent(self, data: bytes) -> tuple[int, int]:
        """Bytes of the text, and 0: tokens are counted for a vocabulary.

        Raises:
            SampleError: it is no text, or an empty one.
        """
        return self.inspect(data)

    def inspect(self, data: bytes) -> tuple[int, int]:
        """The same: there is nothing to decode beside the text.

        Raises:
            SampleError: it is no text, or an empty one.
        """
        size = len(document_of(data).encode())
        if not size:
            raise SampleError("is an empty document; leave it out")
        return size, 0

    def flags(self, data: bytes) -> int:
        """There are none."""
        return 0

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Refuse: documents are not resized.

        Raises:
            SampleError: always.
        """
        raise SampleError("documents are not resized; leave --resize out")

    def perceptual_hash(self, data: bytes) -> int:
        """Refuse: similar documents are not found.

        Raises:
            SampleError: always.
        """
        raise SampleError("documents have no perceptual hash; use --dedupe exact")
