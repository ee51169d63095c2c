"""For Accelerate: a pipeline of this process, on its device, in its checkpoints.

```python
from accelerate import Accelerator

from sslpipe.integrations.accelerate import load_for

accelerator = Accelerator(cpu=True)
pipe = load_for(accelerator, "demo", shards="shards/sample")
# model, optimizer = accelerator.prepare(model, optimizer)    not the pipeline
for batch in pipe:
    pass  # with accelerator.accumulate(model): accelerator.backward(model(batch).loss); ...
# accelerator.save_state(folder), accelerator.load_state(folder) carry the stream, on any ranks
```

Accelerate does not know where an epoch of the pipeline ends: accumulation runs on across epochs,
unless the number of accumulated batches divides `len(pipe)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline import Pipeline, load
from ..recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def load_for(
    accelerator: "Accelerator",
    recipe: str | Path | Recipe,
    *,
    shards: Any,
    overrides: Sequence[str] = (),
) -> Pipeline:
    """Build a pipeline for this process of an accelerator, and register it for checkpoints.

    A run that is resumed registers in the same order as the one that was saved.
    """
    pipe = load(
        recipe, shards=shards, device=accelerator.device, rank=accelerator.process_index,
        world_size=accelerator.num_processes, overrides=overrides,
    )  # fmt: skip
    accelerator.register_for_checkpointing(pipe)
    return pipe
