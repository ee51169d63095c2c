"""The triton executor in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

START = """
import sys
import numpy as np, torch
from sslpipe.image.draws import draw, keys_of, policy
from sslpipe.image.executors import kornia, triton
from sslpipe.lookup import Entry

CPU, FLIP = torch.device("cpu"), ("RandomHorizontalFlip", {})
JITTER = ("ColorJitter", {"brightness": .8, "contrast": .8, "saturation": .8, "hue": .2, "p": .8})
rng = np.random.default_rng(0)
images = [
    torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(50, 70), (64, 48)]
]
CROP = ("RandomResizedCrop", {"size": [24, 20], "resample": sys.argv[1]})


def error(ops, count=2):
    group = policy("global", [Entry(*op) for op in ops], count=count, shared=False)
    assert triton.supports(group)
    uids = np.arange(2) + 7
    keys = keys_of(group, seed=5, epochs=0 * uids, uids=uids)
    table = draw(group, keys, np.array([image.shape[:2] for image in images]))
    views = triton.execute(group, images, table, device=CPU)
    again = triton.execute(group, images, table, device=CPU)
    assert torch.equal(views, again)
    want = kornia.execute(group, images, table, device=CPU)
    assert views.shape == want.shape
    return 255 * (views - want).abs().max().item()
"""
"""The kernels are traced by NumPy there: slow, so everything is tiny."""

SIMCLR = """
blur = ("RandomGaussianBlur", {"kernel_size": [9, 7], "p": [1.0, 0.0]})
ops = [CROP, FLIP, JITTER, ("RandomGrayscale", {}), blur, ("RandomSolarize", {}), ("Normalize", {})]
print(error(ops))
"""

NO_BLUR = """
plain = {"size": [24, 20], "resample": sys.argv[1], "antialias": False}
print(error([("RandomResizedCrop", plain), ("RandomVerticalFlip", {})]))
print(error([("RandomCrop", {"size": [56, 60], "padding": 5}), FLIP, ("Normalize", {})]))
print(error([CROP, JITTER, ("RandomSolarize", {})]))
"""

PHILOX = """
import torch, triton, triton.language as tl


@triton.jit
def kernel(out, seed, c0, c1, c2, c3):
    words = tl.philox(seed, c0 + tl.zeros([1], tl.uint32), c1, c2, c3)
    for i in tl.static_range(4):
        tl.store(out + i + tl.arange(0, 1), words[i].to(tl.int64))
"""


def interpret(code, *args):
    """What the code prints, as lines."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("body", [SIMCLR, NO_BLUR], ids=["simclr", "no blur"])
def test_the_kernels_equal_kornia(body, resample):
    for error in interpret(START + body, resample):
        assert float(error) < 0.01  # of an 8-bit level
