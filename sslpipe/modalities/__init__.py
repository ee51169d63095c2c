"""Modalities: a folder for each, all with the same four parts.

    codec     at rest: which files are packed, what the index says of them         shards/
    decider   DECIDE: crops, masks and tasks as tables, from ids and extents      main process
    decode    bytes -> one array, as the decider's instructions say               workers
    maker     DO: arrays + tables -> views and targets                            on the device

A recipe names its modality: a folder here (`image`), or the user's own `package.module:Thing`. A
view group may name another one than the recipe's: pictures and captions are two groups of a sample.

A modality of your own: save this as `mine.py` and write `modality: mine:Negatives`. It changes one
part of ours; one that is new in all parts is `tests/modalities/toy.py`, series of numbers.

```python
import numpy as np

from sslpipe.modalities import Raw
from sslpipe.modalities.image import ImageModality
from sslpipe.modalities.image.canvases import CanvasDecode


class NegativeDecode(CanvasDecode):  # runs in workers: no torch
    def __call__(self, sample, instructions, memory=None):
        raw = super().__call__(sample, instructions, memory)
        return Raw(np.subtract(255, raw.data, out=raw.data), raw.extent)


class Negatives(ImageModality):  # photos of negatives become positives before anything else
    def decoder(self, recipe):
        return NegativeDecode(recipe.decode.size)
```
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..errors import RecipeError, SslpipeError
from ..shards.codec import Codec
from .messages import Made, Partners, Raw, Tables, class_of
from .protocols import Decider, Decode, DrawsAhead, Maker, ShareDecode

if TYPE_CHECKING:  # decoders are imported by workers, which must not wait for torch
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import numpy.typing as npt
    import torch
    from PIL.Image import Image

    from ..batch import Batch, BatchSpec
    from ..recipe import Recipe
    from ..recipe.schema import ViewSection
    from ..shards.manifest import Manifest, Shard
    from ..shards.verification import Problem
    from ..stream.by_length import LengthBuckets
    from ..stream.packed_rows import RowLayout
    from ..stream.source import Column
    from ..stream.stored import StoredReader

    I64 = npt.NDArray[np.int64]

Costs = Literal["decoding", "making", "memory"]

__all__ = [
    "Codec", "Costs", "Decider", "Decode", "DrawsAhead", "Made", "Maker", "Modality", "Partners",
    "Raw", "ShareDecode", "Tables",
]  # fmt: skip


@runtime_checkable
class Modality(Protocol):
    """What a folder offers as MODALITY; a user's own `package.module:Thing` is derived from it.

    What is not abstract has the defaults of what few modalities have.

    unit: what people call a sample of it, for rates: image, recording. steps: what `Batch.lengths`
    counts, in the plural: tokens; "": nothing.
    """

    unit: str = "sample"
    steps: str = ""

    def advice(self, recipe: Recipe, what: Costs, *, cuda: bool) -> str:
        """How samples cost less, as the end of "To change: ...".

        cuda: whether views are made on such a device.
        """
        return {
            "decoding": "pack smaller samples",
            "making": "use smaller or fewer views",
            "memory": "smaller samples or views",
        }[what]

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """What packing, indexing and verifying know of it."""

    @abstractmethod
    def decider(self, recipe: Recipe, groups: Sequence[str]) -> Decider:
        """Check some view groups of a recipe, with their masks and tasks, and decide for them.

        Raises:
            RecipeError: an op, mask or task that does not exist or does not suit; says file:line.
        """

    @abstractmethod
    def decoder(self, recipe: Recipe) -> Decode:
        """What turns the members of a sample into an array, in workers: picklable and light."""

    @abstractmethod
    def maker(
        self,
        recipe: Recipe,
        decider: Any,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> Maker:
        """What makes the views that `decider`, one of its own, decides.

        Raises:
            RecipeError: `run.executor` does not suit the device or an op.
        """

    @abstractmethod
    def sheet(
        self, batch: Batch, spec: BatchSpec, decider: Any, stored: Column, *, rows: int
    ) -> Image:
        """The first `rows` samples of a batch as a picture, for `sslpipe show`.

        stored: the same samples as they were decoded, before anything was done to them. Of a
        modality that stands beside others each sample has a band, all equally high.
        """

    def beside(
        self, batch: Batch, spec: BatchSpec, decider: Any, stored: Column, *, rows: int
    ) -> Mapping[str, bytes]:
        """Files for `sslpipe show` to write beside the picture, by the end of their name."""
        return {}

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """Stored samples with the captions below them, as a picture for `sslpipe inspect`.

        Raises:
            SslpipeError: the modality draws none.
        """
        raise SslpipeError(f"{class_of(self)} has no thumbnails(); write it, or leave --sheet out")

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """One group, `global`, of one view in which nothing is random, for evaluation.

        Raises:
            SslpipeError: the modality does not say it.
        """
        raise SslpipeError(
            f"{class_of(self)} has no evaluation_views(); write it: what eval and export look at"
        )

    def members(self, recipe: Recipe, groups: Sequence[str]) -> frozenset[str]:
        """Extensions of what these groups are made of where another modality owns the payload."""
        return self.codec.extensions

    def layout(self, recipe: Recipe, decider: Any) -> RowLayout | None:
        """How the documents of the set are packed in rows; None: a sample is a sample.

        Raises:
            RecipeError: `stream.rows` does not suit the modality.
        """
        if recipe.stream.rows:
            raise RecipeError(
                f"{recipe.where('stream', 'rows')}: stream.rows packs documents, which modality = "
                f"{recipe.modality!r} does not have; leave it out"
            )
        return None

    def buckets(self, recipe: Recipe, decider: Any) -> LengthBuckets | None:
        """How long batches of samples of similar lengths may be; None: all are equally long.

        Raises:
            RecipeError: `stream.bucket` does not suit the modality.
        """
        if recipe.stream.bucket:
            raise RecipeError(
                f"{recipe.where('stream', 'bucket')}: stream.bucket sorts samples by length, which "
                f"those of modality = {recipe.modality!r} do not have; leave it out (rows of text: "
                "stream.rows.bucket)"
            )
        return None

    def partners(self, recipe: Recipe, decider: Any) -> Partners | None:
        """Which other samples are wanted beside each; None: none."""
        return None

    def files(self, recipe: Recipe, decider: Any) -> str:
        """What files that a recipe names hash to: a resumed stream must have the same; "": none."""
        return ""

    def stored_reader(self, decode: Any, sets: Sequence[Manifest]) -> StoredReader | None:
        """What reads the samples of some sets from files beside their tars; None: `decode` does.

        Nobody reads the tars then, and there are no workers. It is asked where a recipe is of this
        modality alone.

        Raises:
            ShardError: the manifest of a set promises such files, and one is missing or damaged.
        """
        return None

    def stored_faults(self, manifest: Manifest, shard: Shard) -> Iterator[Problem]:
        """What is wrong with the files beside a tar, for `sslpipe verify`."""
        return iter(())

    def share_decoder(
        self, recipe: Recipe, decode: Any, *, device: torch.device
    ) -> ShareDecode | None:
        """Decode whole shares on the device, if the recipe says so; None: one by one, in workers.

        Raises:
            RecipeError: the device cannot do it.
        """
        return None
