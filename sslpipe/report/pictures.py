"""Samples as people see them: small square pictures of uids, as data URIs and sprites."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import SslpipeError
from ..modalities.audio import sheet
from ..modalities.image.decode import Pixels, decode
from ..modalities.text.vocabulary import document_of
from ..process import cores
from ..shards.manifest import open_manifest
from ..shards.read.store import open_store
from ..stream.reader import Sample, read_sample
from ..stream.records import wanted

I64 = npt.NDArray[np.int64]
SIDES = (64, 48, 40, 32, 24, 16)  # pixels of pictures in a sprite: the first that fits
QUALITY = 80
SNIPPET = 160  # signs of a document that are shown
SHEET = 1000  # pictures of a sprite: browsers decode one only when it is first shown


class SampleFinder:
    """Finds the samples of a shard set by their uids."""

    def __init__(self, shards: str | Path) -> None:
        """Read all indexes.

        Raises:
            ShardError: manifest or indexes are missing or damaged.
        """
        self.manifest = open_manifest(shards)
        self._store = open_store(self.manifest)
        uids = [self._store.index(n).samples["uid"] for n in range(len(self.manifest.shards))]
        self._firsts = np.cumsum([0, *map(len, uids)])
        whole = np.concatenate(uids)
        self._order = whole.argsort(kind="stable")
        self._uids = whole[self._order]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    @property
    def pictured(self) -> bool:
        """Whether the samples can be drawn: images, and recordings as spectrograms."""
        return self.manifest.modality in ("image", "audio")

    def places(self, uids: I64) -> I64:
        """The rows of samples in the whole set, (n,).

        Raises:
            SslpipeError: the set lacks one.
        """
        found = np.searchsorted(self._uids, uids).clip(max=len(self._uids) - 1)
        missing = uids[self._uids[found] != uids]
        if len(missing):
            raise SslpipeError(
                f"report: {self.manifest.root} has no sample of uid {missing[0]} ({len(missing)} "
                f"of {len(uids)} are not there); name the shards that were evaluated"
            )
        return np.asarray(self._order[found], dtype=np.int64)

    def samples(self, uids: I64) -> list[Sample]:
        """The stored samples, in the order of `uids`.

        Raises:
            SslpipeError: the set lacks one, or its bytes are damaged.
        """
        with ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(self._read, self.places(uids).tolist()))

    def keyed_squares(self, uids: I64, side: int) -> list[tuple[str, Pixels]]:
        """Key and picture, (side, side, 3), of samples; grey where they cannot be drawn.

        Raises:
            SslpipeError: the set lacks one, or its bytes are damaged.
        """
        with ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(lambda n: self._square(n, side), self.places(uids).tolist()))

    def snippets(self, samples: Sequence[Sample]) -> list[str]:
        """The beginnings of documents, in one line; empty where samples are no text.

        Raises:
            SampleError: one is no text.
        """
        if self.manifest.modality != "text":
            return [""] * len(samples)
        texts = (" ".join(document_of(sample.data).split()) for sample in samples)
        return [f"{text[:SNIPPET].rstrip()} …" if len(text) > SNIPPET else text for text in texts]

    def _read(self, place: int) -> Sample:
        shard = int(np.searchsorted(self._firsts, place, side="right")) - 1
        tar = self._store.open(shard)
        row = place - int(self._firsts[shard])
        return read_sample(tar, wanted(tar.index, row, file=self._store.name(shard)))

    def _square(self, place: int, side: int) -> tuple[str, Pixels]:
        sample = self._read(place)
        if not self.pictured:
            return sample.key, np.full((side, side, 3), 128, np.uint8)
        if self.manifest.modality == "audio":
            return sample.key, sheet.picture(sample.data, side)
        return sample.key, square(sample.data, side)


def square(data: bytes, side: int) -> Pixels:
    """The central square of an encoded image, (side, side, 3), as encoders see about it.

    Raises:
        SampleError: it does not decode.
    """
    picture = Image.fromarray(decode(data, size=side))
    least = min(picture.size)
    left, top = ((length - least) // 2 for length in picture.size)
    part = picture.crop((left, top, left + least, top + least))
    return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC))


def jpeg(pixels: Pixels) -> bytes:
    """Encode a picture, the same way everywhere."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def jpeg_uri(pixels: Pixels) -> str:
    """A photo as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels)).decode()}"


def png_uri(pixels: Pixels) -> str:
    """A picture of few pixels as a data URI, nothing lost."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


@dataclass(frozen=True, slots=True)
class Sprites:
    """Pictures of `side` pixels in sheets of SHEET, row by row: one JPEG each, as data URIs."""

    side: int
    columns: int
    uris: tuple[str, ...]


def sprites(squares: Sequence[Pixels], *, budget: int) -> Sprites:
    """Lay pictures on sheets, as large as `budget` bytes allow, which the first sheet tells."""
    columns = int(np.ceil(np.sqrt(min(SHEET, max(1, len(squares))))))
    sheets = [squares[start : start + SHEET] for start in range(0, len(squares), SHEET)]
    for side in SIDES:
        first = sheet_uri(sheets[0], side, columns)
        if len(first) * len(squares) <= budget * len(sheets[0]):
            break
    rest = (sheet_uri(sheet, side, columns) for sheet in sheets[1:])
    return Sprites(side, columns, (first, *rest))


def sheet_uri(squares: Sequence[Pixels], side: int, columns: int) -> str:
    """One sheet of pictures, brought to `side` pixels."""
    small = [np.asarray(Image.fromarray(p).resize((side, side))) for p in squares]
    return jpeg_uri(mosaic(small, columns))


def mosaic(squares: Sequence[Pixels], columns: int) -> Pixels:
    """Pictures of one size beside and below each other; what is left over is grey."""
    side = squares[0].shape[0]
    rows = -(-len(squares) // columns)
    whole = np.full((rows * columns, side, side, 3), 128, np.uint8)
    whole[: len(squares)] = squares
    laid = whole.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(laid).reshape(rows * side, columns * side, 3)
