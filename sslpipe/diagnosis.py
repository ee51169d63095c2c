"""What binds a run? From the time of each stage alone and of all together to one sentence.

A stage that went away would leave at least the slowest of the others (they run side by side), and
at least the whole less its own time (they share cores). The larger of both is what is predicted:
it is exact where stages overlap entirely, and where they share one core.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

RATES = (
    "read", "decode", "decide", "copy", "make", "augment", "pipeline", "step", "step_beside",
    "end_to_end",
)  # fmt: skip
LOAD, MAKE = ("reading", "decoding"), ("deciding", "copying", "making")
NEVER, NOTHING = float("inf"), 0.001  # the second: of the time of the whole, where none is left
LITTLE = 0.02  # of the time of the whole: less is noise
ENOUGH = 5  # batches: fewer are timed too roughly
Times = dict[str, float]

ADVICE: Mapping[str, str] = MappingProxyType({
    "reading": "put the shards on a faster disk, set run.cache, or {workers}",
    "decoding": "{workers}, or {lighter}",
    "deciding": "it is Python of the main process: use fewer view groups and masks, or more ranks",
    "copying": "send less: smaller samples, or smaller and fewer views",
    "making": "{threads}{quicker}",
    "Python's lock": "the step waits for the pipeline's Python: use a larger stream.batch_size per "
    "step, {hands}or more ranks",
    "sharing the cores": "use more cores, or lower run.workers (now {count}) and run.threads",
    "sharing the GPU": "make views smaller or of half precision, or leave decoding to the CPU",
    "the method's step": "data keeps up; use {precision}a smaller backbone, or more devices; a "
    "larger stream.batch_size helps only where the device is not busy",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stages:
    """Samples/s, infinite where nothing is done; None: without a method.

    Each stage alone: `decode` is reading and decoding, `augment` is deciding, copying and making,
    `pipeline` all of them; `step` is the method's on a batch at hand, `step_beside` the same while
    the pipeline makes a batch for every step. cpu_us: of the main process, for data alone.
    """

    read: float
    decode: float
    decide: float
    copy: float
    make: float
    augment: float
    pipeline: float
    step: float | None
    step_beside: float | None
    end_to_end: float
    cpu_us: float  # per sample
    workers: int
    device: str  # "cpu" or "cuda"
    scaled: str  # how often samples were decoded at a smaller scale or in part; "": never
    memory: str = ""  # what they need, see memory.py
    unit: str = "sample"  # what a sample is called: image, row
    steps: str = ""  # what a sample has several of, in the plural: tokens; "": nothing
    steps_each: float = 0.0  # how many of them a sample has, on average
    lighter: str = "pack smaller samples"  # how they cost less to decode
    quicker: str = "use smaller or fewer views"  # how they cost less to make
    threads: int = 1  # that make views on a CPU
    cores: int = 1  # that this process may use
    precision: str = ""  # of the step, as in a recipe; "": not known
    batches: int = ENOUGH  # that were timed end to end
    ready: bool = False  # arrays lie beside the tars, so there is no work for workers

    @property
    def rates(self) -> dict[str, float]:
        """The rates that are known and finite, in samples/s, each under its name."""
        rates = {name: getattr(self, name) for name in RATES}
        return {name: rate for name, rate in rates.items() if rate not in (None, NEVER)}

    @property
    def times(self) -> Times:
        """Seconds that one sample takes in each stage, without those before it."""
        step = 1 / self.step if self.step else 0.0
        beside = 1 / self.step_beside if self.step_beside else 0.0
        return {
            "reading": 1 / self.read,
            "decoding": max(0.0, 1 / self.decode - 1 / self.read),
            "deciding": 1 / self.decide,
            "copying": 1 / self.copy,
            "making": 1 / self.make,
            self.sharing: max(0.0, beside - step),
            "the method's step": step,
        }

    @property
    def sharing(self) -> str:
        """What slows the step beside the pipeline; the lock can take no more than Python's time."""
        lost = 1 / self.step_beside - 1 / self.step if self.step and self.step_beside else 0.0
        python = self.cpu_us / 1e6 if self.device == "cuda" else 1 / self.decide
        if lost / 2 <= python:
            return "Python's lock"
        return "sharing the GPU" if self.device == "cuda" else "sharing the cores"

    def without(self, stage: str) -> float:
        """Predict samples/s end to end if a stage took no time: at most 1 / NOTHING of them now."""
        times = self.times
        gone = times[stage]
        pipeline = max(
            1 / self.decode - gone * (stage in LOAD),
            1 / self.augment - gone * (stage in MAKE),
            1 / self.pipeline - gone * (stage in LOAD + MAKE),
        )
        step = sum(times[name] for name in (self.sharing, "the method's step") if name != stage)
        whole = 1 / self.end_to_end
        # by noise nothing may be left, or less
        return 1 / max(pipeline, step, whole - gone, whole * NOTHING)

    @property
    def bottleneck(self) -> str:
        """The stage that would gain most by going away; of equals, the one that takes longest."""
        times, whole = self.times, 1 / self.end_to_end
        gains = {
            name: round((whole - 1 / self.without(name)) / whole / LITTLE)
            for name in times
            if times[name] > 0
        }
        return max(gains, key=lambda name: (gains[name], times[name]))

    @property
    def advice(self) -> str:
        """What to change about the bottleneck."""
        more_threads = self.device == "cpu" and self.threads < self.cores
        return ADVICE[self.bottleneck].format(
            workers=self.more_workers,
            count=self.workers,
            hands="" if self.ready else f"decode in workers (run.workers, now {self.workers}), ",
            lighter=self.lighter,
            threads=f"raise run.threads (now {self.threads}), or " if more_threads else "",
            quicker=self.quicker,
            precision="train.precision: bf16, " if self.precision == "fp32" else "",
        )

    @property
    def more_workers(self) -> str:
        """What more hands would take: workers, as long as there are cores and work for them."""
        if self.ready:
            return "use more ranks"
        if self.workers < self.cores:
            return f"raise run.workers (now {self.workers}, of {self.cores} cores)"
        return f"use more cores (run.workers = {self.workers} has all of them)"

    @property
    def verdict(self) -> str:
        """Name the bottleneck, what it costs and what to change."""
        name = self.bottleneck
        binds = self.without(name) > (1 + LITTLE) * self.end_to_end
        lead = "The bottleneck is" if binds else "No stage alone is the bottleneck; the longest is"
        scaled = f" {self.scaled}." if self.scaled else ""
        rough = f" Only {self.batches} batches were timed end to end; raise --seconds."
        return (
            f"{lead} {name}: {self.times[name] * 1e6:,.0f} of "
            f"{1e6 / self.end_to_end:,.0f} us per {self.unit}. The whole runs at "
            f"{self.said(self.end_to_end)}; at about {rounded(self.without(name))} if {name} took "
            f"no time. To change: {self.advice}.{scaled}"
            f"{rough if self.batches < ENOUGH else ''}"
        )

    def said(self, rate: float) -> str:
        """A rate in samples, and in their steps if they have any: 900 rows/s, 57,000 tokens/s."""
        steps = f", {rounded(rate * self.steps_each)} {self.steps}/s" if self.steps_each else ""
        return f"{rounded(rate)} {self.unit}s/s{steps}"


def rounded(rate: float) -> str:
    """A rate in three figures at least: 3.41, 34.1, 341, 3,412."""
    digits = 0 if rate >= 100 else 1 if rate >= 10 else 2
    return f"{rate:,.{digits}f}"


def consistent(rates: Mapping[str, float]) -> dict[str, Any]:
    """The same rates, none below that of a whole that it is part of.

    What a stage did inside the whole it can do alone; noise says otherwise by a few per cent.
    """
    found: dict[str, Any] = dict(rates)  # floats, that become fields of Stages
    for whole, part in (
        ("end_to_end", "step_beside"), ("step_beside", "step"), ("end_to_end", "pipeline"),
        ("pipeline", "decode"), ("pipeline", "augment"), ("decode", "read"),
        ("augment", "decide"), ("augment", "copy"), ("augment", "make"),
    ):  # fmt: skip
        if whole in found and part in found:
            found[part] = max(found[part], found[whole])
    return found
