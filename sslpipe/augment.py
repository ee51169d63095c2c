"""Only the augmentation: the views of a recipe from images that somebody else has decoded.

```python
import torch

from sslpipe.augment import Augment

augment = Augment("simclr", overrides=["views.global.count=2"])
images_BCHW = torch.randint(0, 256, (4, 3, 300, 400), dtype=torch.uint8)
x1, x2 = augment(images_BCHW, ids=[7, 8, 9, 10])["global"]  # (4, 3, 224, 224) each
tables = augment.decide(augment.canvases(images_BCHW), ids=[7, 8, 9, 10])  # boxes, factors ...
again = augment.make(augment.canvases(images_BCHW), tables)["global"]  # ... give the same views
```
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .device.ragged import Ragged
from .errors import RecipeError, SslpipeError
from .modalities import Tables
from .modalities.image.decider import ImageDecider
from .modalities.image.maker import ImageMaker, sides
from .process import cores
from .recipe import Recipe, load_recipe
from .rng import Place

I64 = npt.NDArray[np.int64]
Images = Tensor | Sequence[Tensor]


class Augment(nn.Module):
    """Images (B, 3, H, W) uint8, or a list of (3, H, W) of many sizes, become views.

    Views are made where the images lie. Each image's draws are its own: a function of (seed, epoch,
    id, view), whatever stands beside it. Without ids an image is known by its place among all that
    the module has seen, which its state_dict carries.

    recipe: a path, the name of a recipe that ships with us, or a Recipe; masks and tasks of it are
    left out. executor: as `run.executor` of a recipe.

    Raises:
        RecipeError: as `sslpipe.load`, or a view group that is not of images.
    """

    def __init__(
        self, recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), seed: int | None = None
    ) -> None:
        super().__init__()
        loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides=overrides)
        for name, group in loaded.views.items():
            if (group.modality or loaded.modality) != "image":
                where = loaded.where("views", name)
                raise RecipeError(f"{where}: views.{name} is not of images; leave it out")
        self.recipe, self.seen = loaded, 0
        self.decider = ImageDecider(
            loaded.views, {}, {}, seed=loaded.stream.seed if seed is None else seed
        )
        self._makers: dict[torch.device, ImageMaker] = {}

    def forward(
        self, images: Images, ids: Sequence[int] | Tensor | None = None, *, epoch: int = 0
    ) -> dict[str, Tensor]:
        """Give the views, group -> (V, B, 3, h, w), on the device of the images.

        ids: whole numbers, one an image, that say which image it is in every epoch.

        Raises:
            SslpipeError: no images of uint8, or not one id for each.
        """
        canvases = self.canvases(images)
        if ids is None:
            ids = range(self.seen, self.seen + len(canvases))
            self.seen += len(canvases)
        return self.make(canvases, self.decide(canvases, ids, epoch=epoch))

    def canvases(self, images: Images) -> Ragged:
        """Bring images to the form that executors read: (H, W, 3) behind each other.

        Raises:
            SslpipeError: no images of uint8 with three channels.
        """
        if not len(images):
            raise SslpipeError("augment: no images; give at least one")
        for image in [images] if isinstance(images, Tensor) else images:
            if image.dtype != torch.uint8 or image.shape[-3] != 3:
                shape = " x ".join(map(str, image.shape))
                raise SslpipeError(
                    f"augment: {shape} of {image.dtype}; give (B, 3, H, W) or a list of (3, H, W) "
                    "of torch.uint8, 0 to 255, as decoders and torchvision.io give them"
                )
        return Ragged.of([image.permute(1, 2, 0) for image in images])

    def decide(
        self, canvases: Sequence[Tensor], ids: Sequence[int] | Tensor, *, epoch: int = 0
    ) -> Tables:
        """Give the tables of parameters: what they decide can be kept, changed and made again.

        Raises:
            SslpipeError: not one id for each image.
        """
        uids = np.array([int(number) for number in ids], dtype=np.int64)
        if len(uids) != len(canvases):
            raise SslpipeError(
                f"augment: {len(uids)} ids for {len(canvases)} images; give one for each"
            )
        place = Place(0, np.arange(len(uids)), len(uids))
        epochs = np.full(len(uids), epoch, dtype=np.int64)
        return self.decider.decide(epochs=epochs, uids=uids, place=place, extents=sides(canvases))

    def make(self, canvases: Sequence[Tensor], tables: Tables) -> dict[str, Tensor]:
        """Make the views that tables decide."""
        device = canvases[0].device
        if device not in self._makers:
            run = self.recipe.run
            threads = ThreadPoolExecutor(cores() if run.threads == "auto" else run.threads)
            self._makers[device] = ImageMaker(
                self.decider, device=device, executor=run.executor, threads=threads,
                where=self.recipe.where("run", "executor"),
            )  # fmt: skip
        return self._makers[device].make(canvases, tables, {}).views

    def get_extra_state(self) -> dict[str, int]:
        """Say how many images were known by their place."""
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Count on from there: the next images without ids get the numbers that follow."""
        self.seen = state["seen"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what makes views: threads and kernels cannot be copied, and are made anew."""
        return {**self.__dict__, "_makers": {}}
