"""The compiled loop draws what NumPy draws, bit for bit, and only where it was prepared."""

import subprocess
import sys

import numpy as np
import pytest

from sslpipe import compiled_draws, rng

from .test_rng import KNOWN


@pytest.fixture(autouse=True)
def loop():
    compiled_draws.prepare()
    assert compiled_draws.LOOP


def both(monkeypatch, *given, **named):
    """What the loop draws, and what NumPy draws."""
    by_loop = rng.draw_blocks(*given, **named)
    with monkeypatch.context() as patch:
        patch.setattr(rng, "LOOP", [])
        return by_loop, rng.draw_blocks(*given, **named)


def u64(*values):
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_known_answers(counter, key, want):
    block, second, low, high = counter
    made = np.empty((4, 1), dtype=np.uint64)
    stream, view = divmod(second, 1 << 16)
    ids, keys = u64(high << 32 | low), u64(key[1] << 32 | key[0])
    compiled_draws.fill_draws(made, u64(block), u64(stream), u64(view), ids, keys)
    assert made[:, 0].tolist() == want


@pytest.mark.parametrize("dtype", [np.uint64, np.float64])
@pytest.mark.parametrize(
    ("epoch", "ids", "view"),
    [
        (3, 5, 0),
        (np.zeros(1000, np.int64), np.arange(-500, 500), np.arange(2)[:, None]),
        (np.arange(1000) // 300, np.arange(2000)[::2] << 40, np.array([[7]])),
        (np.array([4]), np.arange(33), 1),
        (np.arange(6)[:, None], np.arange(5), 0),
        (np.zeros(0, np.int64), np.arange(0), np.arange(2)[:, None]),
    ],
)
def test_it_draws_what_numpy_draws(epoch, ids, view, dtype, monkeypatch):
    blocks, streams = u64(0, 5, 2**32 - 1), u64(0, 65_535, 77)
    by_loop, by_numpy = both(
        monkeypatch, blocks, streams, seed=9, epoch=epoch, ids=ids, view=view, dtype=dtype
    )
    assert by_loop.dtype == by_numpy.dtype == dtype
    assert by_loop.shape == by_numpy.shape
    assert by_loop.tobytes() == by_numpy.tobytes()


def test_nothing_is_drawn_of_no_blocks(monkeypatch):
    by_loop, by_numpy = both(
        monkeypatch, u64(), u64(), seed=0, epoch=np.zeros(3), ids=np.arange(3), view=0
    )
    assert by_loop.shape == by_numpy.shape == (0, 3)


def test_without_numba_nothing_is_prepared(monkeypatch):
    monkeypatch.setattr(compiled_draws, "LOOP", [])
    monkeypatch.setattr(compiled_draws, "find_spec", lambda name: None)
    compiled_draws.prepare()
    assert compiled_draws.LOOP == []


def test_nothing_is_compiled_where_it_cannot_be_kept(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(compiled_draws, "LOOP", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    compiled_draws.prepare()
    assert compiled_draws.LOOP == []


def test_drawing_waits_for_no_compiler():
    """Nor for what loads its code, in a process that has not prepared the loop, as a worker."""
    code = """
import sys
from sslpipe import compiled_draws, rng
drawn = rng.uniforms(9, seed=1, epoch=0, stream="x", ids=range(5))
print({"numba", "llvmlite"} & sys.modules.keys())
compiled_draws.prepare()
assert (rng.uniforms(9, seed=1, epoch=0, stream="x", ids=range(5)) == drawn).all()
print(len(compiled_draws.LOOP), "numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "set()\n1 False\n"
