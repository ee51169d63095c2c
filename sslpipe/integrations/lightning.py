"""For Lightning: a data module, since a loader's own state is dropped in two common cases.

```python
import lightning

from sslpipe.integrations.lightning import StreamModule

data = StreamModule("demo", shards="shards/sample")
trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False)
# trainer.fit(your_module, data); trainer.fit(your_module, data, ckpt_path="last.ckpt") goes on
```

`training_step(batch, n)` gets our Batch, on the device. Pass `batch_size=len(batch.uids)` to
`self.log`: left alone, Lightning takes the number of views for it. Checkpoints in the middle and at
the end of an epoch are exact, on any number of ranks. With `limit_train_batches` the stream goes on
where the limit stopped it, so no sample is seen twice. Validation takes a pipeline of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ExtraError
from ..pipeline import Pipeline, load
from ..recipe import Recipe

try:
    from lightning.pytorch import LightningDataModule
except ImportError:
    try:  # the other distribution, whose classes the first one does not take
        from pytorch_lightning import LightningDataModule
    except ImportError as error:
        raise ExtraError(
            "sslpipe.integrations.lightning: lightning is missing; pip install lightning"
        ) from error


class StreamModule(LightningDataModule):  # type: ignore[misc]  # its types are not read
    """The training batches of a pipeline, and its state in every checkpoint."""

    def __init__(
        self, recipe: str | Path | Recipe, *, shards: Any, overrides: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._recipe, self._shards, self._overrides = recipe, shards, overrides
        self.pipe: Pipeline | None = None  # from `setup` on
        self._state: dict[str, Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the pipeline: now the process group is there, and the device is known."""
        if self.pipe is None:
            device = (
                torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            )
            self.pipe = load(
                self._recipe, shards=self._shards, device=device, overrides=self._overrides
            )
        if self._state is not None:
            self.pipe.load_state_dict(self._state)
            self._state = None

    def train_dataloader(self) -> Pipeline:
        """The pipeline itself, the same one after every epoch."""
        assert self.pipe is not None, "Lightning calls setup first"
        return self.pipe

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, the same on all ranks."""
        return {} if self.pipe is None else self.pipe.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there: at once, or as soon as `setup` has made the pipeline."""
        self._state = state_dict or None
        if self.pipe is not None:
            self.setup()
