"""For the Trainer of Hugging Face: a method of ours, or any module that takes a Batch.

```python
from transformers import TrainingArguments

from sslpipe.integrations.transformers import StreamTrainer

arguments = TrainingArguments("out", max_steps=100, ignore_data_skip=True, save_steps=50)
# StreamTrainer(pipe, model=method, args=arguments).train(resume_from_checkpoint=True)
```

The model is called with the Batch and returns something with a `loss`. The stream's state lies in
`stream.json` beside each checkpoint and is read when a run is resumed: nothing is skipped, on any
number of ranks. All `dataloader_*` arguments, `group_by_length` and `split_batches` say nothing
here; the batch size is the recipe's. The Trainer counts steps (`num_train_epochs` is made
`max_steps`), so what it calls epoch is the share of the run.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..batch import Batch
from ..errors import ExtraError, RecipeError, StateError
from ..methods import Method, follow
from ..pipeline import Pipeline

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ExtraError(
        "sslpipe.integrations.transformers: transformers or accelerate is missing; pip install "
        "transformers accelerate"
    ) from error

STATE = "stream.json"


class StreamTrainer(Trainer):  # type: ignore[misc]  # its types are not read
    """A Trainer that takes its batches from `pipe`, and moves the teachers of a Method of ours.

    Raises:
        RecipeError: arguments by which the Trainer would skip batches, or change their size.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        model: nn.Module,
        args: TrainingArguments,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if not args.ignore_data_skip or args.auto_find_batch_size:
            raise RecipeError(
                "TrainingArguments: the pipeline goes on by its own state and has the recipe's "
                "batch size; write ignore_data_skip=True, and leave auto_find_batch_size out"
            )
        if args.max_steps <= 0:
            batches = args.num_train_epochs * len(pipe)
            args.max_steps = math.ceil(batches / args.gradient_accumulation_steps)
        args.per_device_train_batch_size = pipe.spec.size  # what it says of samples is then right
        args.remove_unused_columns = False
        self.pipe = pipe
        super().__init__(model=model, args=args, callbacks=[Stream(pipe), *(callbacks or [])])

    def get_train_dataloader(self) -> "Endless":
        """The pipeline, of which each batch is the one value of a dict."""
        return Endless(self.pipe)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the state of the stream in a checkpoint if there is one."""
        found = resume_from_checkpoint or None
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        if found is not None:
            self.pipe.load_state_dict(read_state(Path(found)))
        return super().train(found, trial, ignore_keys_for_eval)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss of a batch, whose labels are not the model's affair."""
        loss: Tensor = model(inputs["batch"]).loss
        return loss


class Endless:
    """The batches of epoch after epoch. It has no length on purpose.

    With one, the Trainer ends each epoch with a step of what is left of accumulated batches, and
    after a resume, of which it knows no place, with other ones. Without, it counts steps alone.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        while True:
            yield from ({"batch": batch} for batch in self._pipe)


class Stream(TrainerCallback):  # type: ignore[misc]
    """Writes the stream's state beside each checkpoint, and lets teachers follow."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any
    ) -> None:
        """Move teachers after each optimizer step, as many as a resumed run has done."""
        bare = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if isinstance(model, Method):
            follow(bare, model, state.max_steps, done=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write `stream.json`, from one process, whole or not at all."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            part = folder / f"{STATE}.part"
            part.write_text(json.dumps(self._pipe.state_dict()))
            part.replace(folder / STATE)


def read_state(checkpoint: Path) -> Any:
    """The stream's state of a checkpoint.

    Raises:
        StateError: it has none.
    """
    try:
        return json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise StateError(
            f"{checkpoint}: has no {STATE} that can be read; resume from a checkpoint that "
            "StreamTrainer wrote, or start a new run from its weights"
        ) from error
