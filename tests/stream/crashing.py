"""A user's modality whose decoder gets into trouble at the samples that it is told; for workers.

It imports no torch when it is imported by a worker: what a pipeline needs beside the decoder stands
in `troubled.py`.
"""

import gc
import io
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from sslpipe.errors import SampleError
from sslpipe.modalities import Raw

HEAVY = ("torch", "kornia", "pydantic")


class Boom(Exception):
    """Needs two arguments, so it survives no pickling."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def hang():
    time.sleep(1000)


def rest():
    time.sleep(0.3)


def nap():
    time.sleep(0.05)


def doze():
    time.sleep(0.01)


def nothing():
    """No trouble at all."""


def refuse():
    raise SampleError("is not liked")


def fail():
    raise ZeroDivisionError("the decoder is wrong")


def fail_strangely():
    raise Boom("the decoder", "is strange")


def chat():
    os.write(1, b"chatter of a decoder\n")
    print("more chatter", flush=True)


def report():
    """Say what this process has imported, by way of a fault."""
    raise SampleError(f"imported: {[name for name in HEAVY if name in sys.modules]}")


def describe():
    """Say what state this process is in, by way of a fault."""
    threads = len([*Path("/proc/self/task").iterdir()])
    matrices = os.environ["OPENBLAS_NUM_THREADS"]
    raise SampleError(f"collects: {gc.isenabled()}, {threads} thread, matrices by {matrices}")


class Stubborn:
    """Can be sent, and not be received."""

    def __call__(self):
        """No trouble."""

    def __reduce__(self):
        return refuse_to_load, ()


def refuse_to_load():
    raise ImportError("not in workers")


class TroubledDecode:
    """Series of numbers, as float32; `trouble()` comes before those samples whose key is named.

    keys: None: before all. measured: in place of the extent of an iterable's samples. mixed: arrays
    alternate between float32 and float64 (C, T), by their uid, and have as many axes.
    """

    def __init__(self, trouble=nothing, keys=None, *, wide=0, mixed=False, measured=None):
        self.trouble, self.keys, self.wide, self.mixed = trouble, keys, wide, mixed
        self.measured = measured

    def extent(self, sample):
        return self.measured or (self._series(sample).shape[1],)

    def room(self, *, extents, sizes, instructions):
        return np.full_like(sizes, self.wide)

    def _series(self, sample):
        return np.load(io.BytesIO(sample.data), allow_pickle=False).astype(np.float32)

    def __call__(self, sample, instructions, memory=None):
        if self.keys is None or sample.key in self.keys:
            self.trouble()
        series = self._series(sample)
        if self.mixed and int(sample.uid) % 2:
            series = series.astype(np.float64)
        return Raw(series, series.shape[1:])


class DeepDecode(TroubledDecode):
    """The same, whose trouble comes before a sample is measured."""

    def extent(self, sample):
        if sample.key in self.keys:
            self.trouble()
        return super().extent(sample)

    def __call__(self, sample, instructions, memory=None):
        series = self._series(sample)
        return Raw(series, series.shape[1:])


class MixedDecode(TroubledDecode):
    """One number of a series where it is told which."""

    def __call__(self, sample, instructions, memory=None):
        raw = super().__call__(sample, (), memory)
        (which,) = instructions
        return Raw(raw.data[:1] if which < 0 else raw.data[:1, which : which + 1], raw.extent)
