"""This process among others: its rank of how many, and the CPU cores that it may use."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import RecipeError, SslpipeError

# How a launcher that is none of torch's says how many processes it started, the surest word first:
# in a shell of Slurm's SLURM_NTASKS counts the allocation, and SLURM_STEP_NUM_TASKS what runs.
FOREIGN_LAUNCHERS = {
    "Slurm": ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    "MPI": ("PMI_RANK", ("PMI_SIZE",)),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
}


TURN = 5e-4  # seconds; Python's own are 5e-3


class Ranks(NamedTuple):
    """This process among those of a run: `rank` in [0, size), and its number on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def group_ranks() -> Ranks:
    """Ask torch.distributed's default group for the rank; 0 of 1 where none is initialised.

    A group needs no RANK: Lightning starts processes by itself, with WORLD_SIZE alone.
    """
    if not in_group():
        return Ranks()
    import torch.distributed as dist

    local = number_in(os.environ, "LOCAL_RANK", 0)
    return Ranks(dist.get_rank(), dist.get_world_size(), local)


def in_group() -> bool:
    """Whether torch.distributed has a default group; where torch is not loaded there is none."""
    if "torch" not in sys.modules:  # a stream of raw samples does without its second of import
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def launcher_ranks(environ: Mapping[str, str]) -> Ranks:
    """Read what torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; 0 of 1 without them.

    Raises:
        RecipeError: one is no number, there are several processes and no RANK, or too few for it.
    """
    found = Ranks(
        rank=number_in(environ, "RANK", 0),
        size=number_in(environ, "WORLD_SIZE", 1),
        local_rank=number_in(environ, "LOCAL_RANK", 0),
    )
    if "WORLD_SIZE" in environ and found.rank >= found.size:
        raise RecipeError(
            f"ranks: RANK={found.rank} is not below WORLD_SIZE={found.size}; start with torchrun, "
            "or correct them"
        )
    if found.size > 1 and "RANK" not in environ:
        raise RecipeError(
            f"ranks: WORLD_SIZE={found.size} without RANK, so each process would read the same "
            "data as rank 0; start with torchrun, or set both"
        )
    return found


def number_in(environ: Mapping[str, str], name: str, default: int) -> int:
    """A number in the environment; `default` where the name is not set.

    Raises:
        RecipeError: what stands there is no number.
    """
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise RecipeError(
            f"ranks: {name}={text!r} is no number; start with torchrun, or correct it"
        )
    return int(text)


def process_ranks(rank: int | None = None, size: int | None = None) -> Ranks:
    """Find the rank in the process group if there is one, else in what the launcher started.

    What is given is taken as it is.

    Raises:
        RecipeError: Slurm or MPI started several processes, and nobody told torch.
    """
    if rank is not None and size is not None:
        return Ranks(rank, size)
    found = found_ranks()
    return found._replace(
        rank=found.rank if rank is None else rank, size=found.size if size is None else size
    )


def found_ranks() -> Ranks:
    """Find the rank where nobody gives it."""
    if in_group():
        return group_ranks()
    refuse_foreign_launcher(os.environ)
    return launcher_ranks(os.environ)


def refuse_foreign_launcher(environ: Mapping[str, str]) -> None:
    """Refuse processes that would each take themselves for the only one, and read the same data.

    Raises:
        RecipeError: a launcher says that it started several, without RANK and WORLD_SIZE.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return
    for launcher, (rank, sizes) in FOREIGN_LAUNCHERS.items():
        name = next((name for name in sizes if name in environ), None)
        if rank in environ and name and environ[name].isdecimal() and int(environ[name]) > 1:
            raise RecipeError(
                f"ranks: {launcher} started {environ[name]} processes ({name}={environ[name]}, "
                f"{rank}={environ[rank]}) but set neither RANK nor WORLD_SIZE, so each would read "
                "the same data as rank 0 of 1; start with torchrun or srun --ntasks-per-node=1 "
                "python -m torch.distributed.run, or give load rank= and world_size=; a process "
                "that is alone on purpose sets RANK=0 WORLD_SIZE=1"
            )


def cores() -> int:
    """Count the CPU cores that this process may use, which a container may make fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node_ranks() -> int:
    """Count the processes of this run on this machine, as the launcher says; 1 without one.

    Raises:
        RecipeError: LOCAL_WORLD_SIZE is no number.
    """
    return max(1, number_in(os.environ, "LOCAL_WORLD_SIZE", 1))


@contextmanager
def short_turns(seconds: float = TURN) -> Iterator[None]:
    """Have a thread give Python's lock to another that waits after `seconds`.

    Making a batch is some milliseconds of small NumPy calls, which keep the lock. The thread that
    trains, which starts kernels one by one, would wait for whole turns of Python's 5 ms meanwhile,
    and the GPU with it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, seconds))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def user_cache(name: str) -> Path:
    """The folder for `name` in the user's cache: XDG_CACHE_HOME's, or ~/.cache.

    Raises:
        SslpipeError: this user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return without_tilde(home, where="the user's cache", remedy="set XDG_CACHE_HOME") / (
        f"sslpipe/{name}"
    )


def regular_file(path: str | Path) -> Path:
    """The path, for whoever opens it: a named pipe would let them wait for ever, without a word.

    What a shell holds open below /dev, as `<(...)`, comes to an end; a folder says so itself.

    Raises:
        OSError: it is a pipe, a device or a socket, or there is nothing; `strerror` says so.
    """
    mode = Path(path).stat().st_mode
    given_by_shell = stat.S_ISFIFO(mode) and str(path).startswith(("/dev/fd/", "/dev/stdin"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or given_by_shell):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return Path(path)


def without_tilde(path: str | Path, *, where: str, remedy: str) -> Path:
    """A path whose `~` is the user's home, or `~name` another's.

    Raises:
        SslpipeError: there is none, as where a container runs as a number that has no name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SslpipeError(f"{where}: {str(path)!r}: there is no such home; {remedy}") from error
