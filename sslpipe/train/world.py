"""What a run sets up in its process and puts back at the end.

These are the process group and the device of each rank, torch's global generators, and the handlers
of signals that ask it to stop (SIGTERM or SIGUSR1 of a scheduler, Ctrl-C of a person).
"""

import gc
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist

from .. import rng
from ..device.handoff import find_device
from ..errors import RecipeError
from ..process import Ranks, launcher_ranks, number_in

PORTS = 2**16 - 1

# where there is no SIGUSR1 (Windows), it is not sent
SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


@contextmanager
def start_world(kind: str) -> Iterator[Ranks]:
    """Join torchrun's process group (NCCL on `cuda`, else Gloo) and leave it at the end.

    Raises:
        SslpipeError: this machine has no such device, or fewer of them than ranks.
        RecipeError: what the environment says of ranks is wrong.
    """
    world = launcher_ranks(os.environ)
    device = find_device(rank_device(world, str(find_device(kind))))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1:
        yield world
        return
    check_meeting(os.environ)
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield world
        dist.barrier()  # nobody leaves while another rank still saves
    finally:
        gc.collect()  # DDP lies in reference cycles; what it holds of the group must go first
        dist.destroy_process_group()


def check_meeting(environ: Mapping[str, str]) -> None:
    """Check where the ranks are to meet, as torchrun says it in MASTER_ADDR and MASTER_PORT.

    Raises:
        RecipeError: one is missing, or the port is no number below 65536.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            size = environ.get("WORLD_SIZE")
            raise RecipeError(
                f"ranks: WORLD_SIZE={size} without {name}, so they cannot meet; start with "
                "torchrun, or set it"
            )
    if number_in(environ, "MASTER_PORT", 0) > PORTS:
        raise RecipeError(
            f"ranks: MASTER_PORT={environ['MASTER_PORT']} is no port; set it to {PORTS} or less"
        )


def rank_device(ranks: Ranks, kind: str) -> torch.device:
    """Name the device of a rank: for `cuda`, the GPU of this process; others are themselves."""
    return torch.device("cuda", ranks.local_rank) if kind == "cuda" else torch.device(kind)


@contextmanager
def keyed(
    purpose: str, *, seed: int, step: int = 0, rank: int = 0, device: torch.device | None = None
) -> Iterator[None]:
    """Fence torch's global generators: inside, a function of the arguments; outside, untouched.

    So a resumed run drops what the uninterrupted one would have dropped, and no generator state
    needs to be saved. Costs some 30 us; torch.manual_seed would cost ten times that.
    """
    words = rng.words(2, seed=seed, epoch=step, stream=purpose, ids=np.int64(rank))
    key = int(words[0]) << 32 | int(words[1])
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(key)
        if cuda:
            torch.cuda.manual_seed(key)
        yield


@dataclass(slots=True)
class StopRequest:
    """Holds the number of the signal that asked this process to stop; 0: none did."""

    signal: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield what SIGNALS are noted in; a second one acts as if we were not here.

    A signal that is ignored (Ctrl-C, by jobs that a script starts with &) stays ignored. Outside
    the main thread, where Python allows no handlers, none is ever noted.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    found = {s: signal.getsignal(s) or signal.SIG_DFL for s in SIGNALS}
    before = {s: handler for s, handler in found.items() if handler != signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        restore()
