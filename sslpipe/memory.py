"""Will it fit? Memory and open files that a run needs, estimated before it begins.

    canvases   the decoded samples of a share, by the index, in every share that is in flight
    views      of a batch, by the spec, in every batch that is made ahead
    making     on a CPU: what lives beside them while a batch is made, tried on a few samples
    step       on a CPU: what the method keeps for backward, tried on a few samples, and gradients

To these comes what the process has taken already. Data that cannot fit is refused. What is tried
is only warned of: methods differ in what they keep.
"""

import math
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .batch import BatchSpec
from .device.handoff import SLOTS
from .errors import RecipeError
from .modalities.crews import shares_ahead, shares_waiting
from .modalities.parts import advice
from .pipeline import Pipeline
from .process import node_ranks
from .shards.read.store import open_files
from .step_memory import making_bytes, step_bytes
from .stream.packed import Packed
from .stream.tasks import DECODE

MB, GB = 1e6, 1e9
CLOSE = 0.9  # of what is free
EXPANSION = 10  # bytes of a decoded picture per byte of its file, where no index tells
WORKER = 25_000_000  # bytes of its own that a worker takes: NumPy, decoders
FILES = 64  # that are open anyway
MOST_FILES = 65_536
CGROUPS = (  # root, limit, usage; versions 2 and 1
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: of data on the host, of data on a CUDA device, of what a CPU does; what is free."""

    host: int
    device: int
    step: int
    free: int | None  # on the host for this rank; None: not known
    device_free: int | None
    taken: int = 0  # by this process and its workers, before the first batch
    making: int = 0  # of a batch, while it is made on a CPU
    remedy: str = ""  # what to set where it is too much

    @property
    def work(self) -> int:
        """Bytes of what a CPU does, beside the data."""
        return self.making + self.step

    @property
    def fits(self) -> bool:
        """Whether all of it is free on the host, as far as that is known."""
        return self.free is None or self.host + self.work <= self.free

    @property
    def line(self) -> str:
        """The estimate in one sentence for people, on the host and on the device."""
        parts = [f"data {sized(self.host)}"]
        parts += [f"making a batch about {sized(self.making)}"] if self.making else []
        parts += [f"the step about {sized(self.step)}"] if self.step else []
        parts += [f"taken already {sized(self.taken)}"] if self.taken else []
        whole = sized(self.host + self.work + self.taken)
        host = f"memory: about {whole} in all ({', '.join(parts)})"
        host += "" if self.free is None else f", {sized(self.free)} more are free"
        if self.device_free is None:
            return host
        device = f"on the device {sized(self.device)} of {sized(self.device_free)} free"
        return f"{host}; {device}, without the step"

    @property
    def warning(self) -> str:
        """What is said where little more than that is free, or less; "": there is enough."""
        total = self.host + self.work
        if self.free is None or total <= CLOSE * self.free:
            return ""
        much = "more than is free" if not self.fits else "close to all that is free"
        return (
            f"memory: {sized(total)} is {much}, and the system may kill this process: set "
            f"{self.remedy}"
        )

    @property
    def told(self) -> list[str]:
        """All that is said of it before work begins."""
        return [text for text in (self.line, self.warning) if text]

    @property
    def pairs(self) -> list[tuple[str, int, int]]:
        """Where, how much data there, and how much is free."""
        places = (
            ("this machine", self.host, self.free),
            ("the device", self.device, self.device_free),
        )
        return [(where, need, free) for where, need, free in places if free is not None]


def sized(count: float) -> str:
    """Bytes for people: 58 MB, 1.3 GB; what rounds to no megabyte in kB."""
    if 0 < count < 0.5 * MB:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / GB:,.1f} GB" if count >= 0.95 * GB else f"{count / MB:,.0f} MB"


def check_memory(pipe: Pipeline, method: nn.Module | None = None) -> Need:
    """Estimate what a pipeline, and with a method its training, needs; refuse what cannot fit.

    Raises:
        RecipeError: the data alone needs more memory than is free, or too many open files.
    """
    check_open_files(pipe)
    need = estimate(pipe, None)
    words = advice(pipe.recipe, pipe.parts, "memory", device=pipe.device)
    remedy = f"a smaller stream.batch_size or run.prefetch, or {words}"
    for where, data, free in need.pairs:
        if data > free:
            raise RecipeError(
                f"{pipe.recipe.path}: the data alone needs {sized(data)} and {where} has "
                f"{sized(free)} free; set {remedy}"
            )
    # which takes the first samples: only if the data fits
    return replace(estimate(pipe, method), remedy=f"{remedy}, or a smaller backbone")


def estimate(pipe: Pipeline, method: nn.Module | None) -> Need:
    """Estimate the bytes of a pipeline and, if there is a method to train on a CPU, its step."""
    spec, ahead, cuda = pipe.spec, pipe.recipe.run.prefetch, pipe.device.type == "cuda"
    canvases, views = share_bytes(pipe), view_bytes(spec)
    # decoded, waiting, and one that views are made of
    shares = shares_ahead(pipe.workers) + shares_waiting(pipe.workers, ahead) + 1
    shares += SLOTS if cuda else 0  # whose copies may still run
    batches = ahead + 1  # one is trained on
    ranks = node_ranks()
    free = free_host()
    return Need(
        host=shares * canvases + (0 if cuda else batches * views),
        device=2 * canvases + batches * views if cuda else 0,
        making=0 if cuda or method is None else making_bytes(pipe),
        step=0 if cuda or method is None else step_bytes(pipe, method),
        free=None if free is None else free // ranks,
        device_free=torch.cuda.mem_get_info(pipe.device)[0] if cuda else None,
        taken=resident() + WORKER * pipe.workers,
    )


def share_bytes(pipe: Pipeline) -> int:
    """Bytes of the decoded samples of the first share; 0 for an iterable, which tells nothing."""
    if not isinstance(pipe.source, Packed):
        return 0
    wants = pipe.source.wants(pipe.step)
    samples, payloads = pipe.source.records(wants)
    extents, sizes = samples["extent"].astype(np.int64), payloads["size"].astype(np.int64)
    total = 0
    for part in pipe.parts:
        told = part.instructions(epochs=wants.epochs, uids=samples["uid"], extents=extents)
        room = part.room(kind=DECODE, extents=extents, sizes=sizes, instructions=told)
        total += int(np.where(room > 0, room, EXPANSION * sizes * part.owns_payload).sum())
    return total


def view_bytes(spec: BatchSpec) -> int:
    """Bytes of the views of one batch."""
    each = (
        view.count * math.prod(view.shape) * torch.empty((), dtype=view.dtype).element_size()
        for view in spec.views.values()
    )
    return spec.size * sum(each)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    return 0


def free_host() -> int | None:
    """Bytes that this process may still take: of the machine, or of its control group."""
    found = [*machine_free(Path("/proc/meminfo")), *group_free()]
    return min(found) if found else None


def machine_free(meminfo: Path) -> Iterator[int]:
    """Yield the bytes that Linux says are available; nothing on other systems."""
    with suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def group_free(root: Path = Path("/")) -> Iterator[int]:
    """What the limits of this process's control groups leave; file cache can be taken back."""
    for place, limit, usage in CGROUPS:
        for folder in group_folders(root, root / place):
            with suppress(OSError, ValueError):  # "max" is no limit
                most = int((folder / limit).read_text())
                used = int((folder / usage).read_text())
                stat = (folder / "memory.stat").read_text()
                rows = dict(line.split() for line in stat.splitlines())
                yield max(0, most - used + int(rows.get("inactive_file", 0)))


def group_folders(root: Path, top: Path) -> list[Path]:
    """The folders of this process's control group and of those around it, below `top`."""
    found = [top]  # of a container, as it sees itself
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                own = top / path.lstrip("/")
                found += [own, *(p for p in own.parents if top in p.parents)]
    return found


def raise_file_limit() -> None:
    """Let this process and its workers open as many files as the system allows them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_open_files(pipe: Pipeline) -> None:
    """See that shards and workers find enough open files.

    Raises:
        RecipeError: they do not; says how many they need.
    """
    if not isinstance(pipe.source, Packed):
        return
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    corpora, workers = pipe.source.corpora, pipe.workers
    shards = sum(len(corpus.files) for corpus in corpora)
    tars = min(shards, (len(corpora) + workers) * open_files())
    need = tars + 2 * workers + FILES
    if 0 <= allowed < need:
        raise RecipeError(
            f"{pipe.recipe.path}: {shards:,} shards and {workers} workers need about {need:,} open "
            f"files, and this process may have {allowed:,}; run `ulimit -n {2 * need}`, set fewer "
            "run.workers, or pack into larger shards"
        )
