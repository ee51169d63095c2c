"""The loop of trained protocols: a head or a whole model learns labels from a stream of ours.

Everything in a step is a function of seed and step, so a run that is killed and resumed ends with
the weights of one that was not. One process; batches larger than PART are read in parts.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import SslpipeError, StateError
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.names import Entry
from ..recipe.schema import TrainSection
from ..shards.manifest import Manifest
from ..shards.side_files import written_whole
from ..train.loop import endless
from ..train.optimizers import set_rates
from ..train.run import plan_of
from ..train.schedules import RatePlan, ended_epoch
from ..train.world import keyed
from .features import first_view

PART = 128  # samples that are encoded at once, at most
OWN = Entry("its own")  # the backbone of a section of rates: the subject's


def momentum_sgd(lr: float) -> Entry:
    """SGD with momentum 0.9 and no weight decay; lr: for 256 samples."""
    return Entry("sgd", {"lr": lr, "momentum": 0.9, "weight_decay": 0.0})


@dataclass(frozen=True, slots=True)
class Course:
    """The rates of a protocol for one set: `train.accumulate` parts of `part` samples a step.

    `said`: "official", or what differs from it.
    """

    train: TrainSection
    part: int
    said: str

    @property
    def batch(self) -> int:
        """Samples of an optimizer step, to which the learning rate is scaled."""
        return self.part * self.train.accumulate


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns, and how it takes a step.

    `backward` makes the gradients of one step of the batches that it is given. `identity` names all
    that decides the result beside the stream, so that no run goes on with another's state.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    backward: Callable[[Iterator[Batch]], None]
    identity: str
    seed: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A learner at its rates, over its open stream."""

    learner: Learner
    plan: RatePlan
    pipeline: Pipeline


def course_of(
    official: TrainSection,
    official_batch: int,
    *,
    samples: int,
    epochs: int | None,
    batch_size: int | None,
) -> Course:
    """The official course, or a shorter one, or one of smaller batches.

    Warm-up and milestones keep their shares of the run. A batch is never larger than the set;
    beyond PART it is rounded down to whole parts.

    Raises:
        SslpipeError: epochs or batch size are not positive.
    """
    if min(epochs or 1, batch_size or 1) < 1 or 0 in (epochs, batch_size):
        raise SslpipeError(
            f"evaluation: epochs = {epochs}, batch_size = {batch_size}; set both to 1 or more"
        )
    batch = min(batch_size or official_batch, samples)
    part = min(batch, PART)
    train = shortened(official, epochs or official.epochs)
    train = train.model_copy(update={"accumulate": batch // part})
    course = Course(train, part, "")
    pairs = (
        ("epochs", train.epochs, official.epochs),
        ("samples a batch", course.batch, official_batch),
    )
    differs = [f"{now} of {then} {what}" for what, now, then in pairs if now != then]
    return Course(train, part, "official but " + " and ".join(differs) if differs else "official")


def shortened(official: TrainSection, epochs: int) -> TrainSection:
    """The same section for another number of epochs."""
    share = epochs / official.epochs
    milestones = tuple(max(1, round(share * milestone)) for milestone in official.milestones)
    warmup = share * official.warmup_epochs
    update = {"epochs": epochs, "warmup_epochs": warmup, "milestones": milestones}
    return official.model_copy(update=update)


def schedule_said(train: TrainSection) -> str:
    """How the learning rate goes on from its peak, in words."""
    if train.milestones:
        return f" x {train.gamma:g} at epochs {', '.join(map(str, train.milestones))}"
    warmup = f", {train.warmup_epochs:g} epochs of warm-up" if train.warmup_epochs else ""
    return f"{warmup}, cosine to {train.final_lr:g}"


def fit(
    learner: Learner, course: Course, recipe: Recipe, samples: Manifest, state: Path | None = None
) -> None:
    """Train to the end on the views of `recipe` of `samples`, where the module's weights are.

    With `state`, a file, go on where it was written, and write every epoch.

    Raises:
        SslpipeError: the weights are no longer finite.
        ShardError: the samples cannot be read.
        StateError: the file is damaged, or of another run.
    """
    device = next(learner.module.parameters()).device
    with load(recipe, shards=samples, device=device, rank=0, world_size=1) as pipeline:
        plan = plan_of(course.train, len(pipeline), learner.optimizer)
        take_steps(Fit(learner, plan, pipeline), state)


def take_steps(run: Fit, state: Path | None) -> None:
    """Take all steps, or those that `state` has not done.

    Raises:
        SslpipeError: the weights are no longer finite.
        StateError: the file is damaged, or of another run.
    """
    learner = run.learner
    learner.module.train()
    step = restored(run, state) if state is not None and state.exists() else 0
    total, accumulate = run.plan.total, run.plan.accumulate
    with closing(endless(run.pipeline)) as batches:
        while step < total:
            decay = run.plan.weight_decay_at(step)
            set_rates(learner.optimizer, lr=run.plan.lr_at(step), weight_decay=decay)
            learner.optimizer.zero_grad()
            with keyed("evaluate", seed=learner.seed, step=step, device=run.pipeline.device):
                learner.backward(islice(batches, accumulate))
            learner.optimizer.step()
            step += 1
            epoch = ended_epoch(step, accumulate=accumulate, length=len(run.pipeline))
            if epoch or step == total:
                require_finite(learner, epoch)
                if state is not None:
                    save(run, step, state)


def require_finite(learner: Learner, epoch: int | None) -> None:
    """Check the weights once an epoch.

    Raises:
        SslpipeError: one is not finite.
    """
    if not all(bool(p.isfinite().all()) for p in learner.module.parameters()):
        raise SslpipeError(
            f"{learner.identity}: the weights are not finite after epoch {epoch or 'the last'}; "
            "the learning rate does not suit these features: choose another protocol or batch size"
        )


def save(run: Fit, step: int, path: Path) -> None:
    """Write all that changes while it learns, whole or not at all."""
    content = {
        "identity": run.learner.identity,
        "step": step,
        "stream": run.pipeline.state_dict(),
        "module": run.learner.module.state_dict(),
        "optimizer": run.learner.optimizer.state_dict(),
    }
    with written_whole(path) as part, part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def restored(run: Fit, path: Path) -> int:
    """Put a run back where it was saved; the steps done.

    Raises:
        StateError: the file is damaged, or of another run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        identity = content["identity"]
    except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise StateError(f"{path}: damaged ({error}); remove it to begin anew") from error
    learner = run.learner
    if identity != learner.identity:
        raise StateError(
            f"{path}: is of {identity!r}, this is {learner.identity!r}; name another file, or "
            "remove it"
        )
    run.pipeline.load_state_dict(content["stream"])
    learner.module.load_state_dict(content["module"])
    learner.optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])


def accuracy_on(predict: Callable[[Tensor], Tensor], batches: Pipeline, labels_N: Tensor) -> float:
    """The share of right answers on a sequential stream, every sample once.

    predict: images (B, C, H, W) on the device -> scores (B, K). labels_N: of the samples in order.
    """
    guesses = [
        predict(first_view(batch.in_float32(), "global")).argmax(1).cpu() for batch in batches
    ]
    return float((torch.cat(guesses) == labels_N).double().mean())
