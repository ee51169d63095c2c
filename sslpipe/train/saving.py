"""A run as a checkpoint, and back: whole in one file, or its tensors in parts beside it.

Of a run that is sharded, last.pt names the folder with its tensors (part_files.py), and is written
when that is complete: after a crash it names the old folder or the new one. Either kind is resumed
by either kind of run, on any number of ranks.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StateError
from ..recipe import Recipe
from ..recipe.sections import recipe_text
from ..shards.manifest import FILE
from . import checkpoint
from .run import TrainRun, encoded_view
from .warm_start import check_same

FOLDER = "parts-{:08d}"  # of a step
FOLDERS = "parts-*"


def check_folder(last: Path, *, resume: bool) -> None:
    """Make sure that a new run does not overwrite an old one, and that one to resume is there.

    Raises:
        StateError: there is a checkpoint already, or none; or it is the folder of a set.
    """
    if (last.parent / FILE).exists():
        raise StateError(f"{last.parent}: holds packed shards; name another folder for the run")
    if resume and not last.exists():
        raise StateError(f"{last}: there is no checkpoint; check the folder, or start a new run")
    if last.exists() and not resume:
        raise StateError(
            f"{last}: holds a run already; resume it (--resume), or choose another folder"
        )


def check_resumed(last: Path, recipe: Recipe) -> None:
    """Refuse to resume another run before anything is made for it: tensors stay in the file.

    Raises:
        StateError: the checkpoint is missing, cut, of another format, or of another recipe.
    """
    with checkpoint.told_of(last):
        content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    checkpoint.check_recipe(last, checkpoint.check_format(last, content), recipe)


def save_parts(run: TrainRun, step: int, out: Path) -> dict[str, str] | None:
    """Write the tensors of a sharded run, on all ranks; give what last.pt says of them."""
    if not run.sharded:
        return None
    from .part_files import write_parts

    folder = FOLDER.format(step)
    tensors, _ = checkpoint.taken_apart(run.method.state_dict(), run.optimizer.state_dict())
    write_parts(out / folder, tensors)
    return {"folder": folder, "encoder": f"{run.method.encoders[0][1]}."}


def save_run(run: TrainRun, step: int, path: Path, parts: dict[str, str] | None = None) -> None:
    """Write a checkpoint of `step` done steps; `parts`: what `save_parts` gave."""
    states: dict[str, Any] = {
        "encoder": run.method.encoder.state_dict(),
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    if parts is not None:
        _, (method, optimizer) = checkpoint.taken_apart(states["method"], states["optimizer"])
        states = {"encoder": {}, "method": method, "optimizer": optimizer}
    content = checkpoint.Checkpoint(
        recipe=recipe_text(run.recipe),
        fingerprint=run.recipe.fingerprint,
        view=checkpoint.view_record(encoded_view(run.pipeline.spec)),
        step=step,
        stream=run.pipeline.state_dict(),
        **states,
        scaler=run.scaler.state_dict(),
        torch=str(torch.__version__),
        start=run.start,
        parts=parts,
    )
    checkpoint.write_checkpoint(path, content)


def remove_unnamed(out: Path) -> None:
    """Remove the folders of tensors that no checkpoint in `out` names any more."""
    folders = list(out.glob(FOLDERS))
    if not folders:
        return
    stored = map(checkpoint.read_stored, out.glob("*.pt"))
    named = {content.parts["folder"] for content in stored if content.parts}
    for folder in folders:
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def restore_run(run: TrainRun, path: Path) -> tuple[TrainRun, int]:
    """Put a run back where a checkpoint was taken; return it and the steps done.

    Raises:
        StateError: the checkpoint is missing, damaged, or of another run.
    """
    content = checkpoint.read_stored(path)
    checkpoint.check_recipe(path, content, run.recipe)
    check_same(path, content.start, run.start)
    content = own_parts(run, path, content) if run.sharded else checkpoint.with_parts(path, content)
    run.pipeline.load_state_dict(content.stream)
    try:
        run.method.load_state_dict(content.method)
        run.optimizer.load_state_dict(content.optimizer)
    except (RuntimeError, ValueError) as error:
        raise StateError(
            f"{path}: does not fit this method ({error}); resume with the code that wrote it"
        ) from error
    run.scaler.load_state_dict(content.scaler)
    return replace(run, start=content.start), content.step


def own_parts(run: TrainRun, path: Path, stored: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """Give a checkpoint with this rank's parts of the tensors; of parts no more than these is read.

    Raises:
        StateError: the tensors are missing or damaged.
    """
    from .part_files import read_parts, stored_sizes

    likes = models_of(run)
    if stored.parts is None:
        whole, rest = checkpoint.taken_apart(stored.method, stored.optimizer)
        tensors = {name: cut(tensor, likes(name)) for name, tensor in whole.items()}
    else:
        folder, rest = path.parent / stored.parts["folder"], (stored.method, stored.optimizer)
        tensors = {
            name: cut(torch.zeros(size, dtype=dtype), likes(name))
            for name, (size, dtype) in stored_sizes(folder).items()
        }
        read_parts(folder, tensors)
    method, optimizer = checkpoint.put_together(tensors, rest)
    return replace(stored, method=method, optimizer=optimizer)


def models_of(run: TrainRun) -> Callable[[str], Tensor | None]:
    """Give what tells, of a tensor's name in a checkpoint, how the run holds such a one."""
    method: Mapping[str, Tensor] = run.method.state_dict()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]

    def like(name: str) -> Tensor | None:
        kind, rest = name.split("/", 1)
        return method.get(rest) if kind == "method" else parameters[int(rest.split("/")[0])]

    return like


def cut(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Keep of a tensor what this rank holds of one of its shape; smaller ones all ranks hold."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
