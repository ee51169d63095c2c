"""The triton executor in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sslpipe.modalities.image.draws import policy
from sslpipe.recipe.names import Entry

triton = pytest.importorskip("triton")  # comes with torch on Linux only
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sslpipe.modalities.image.executors import triton as executor  # noqa: E402

ROOT = Path(__file__).parents[3]

START = """
import numpy as np, torch
from sslpipe.modalities.image.draws import draw, keys_of, policy
from sslpipe.modalities.image.executors import kornia, run_prepared, triton
from sslpipe.recipe.names import Entry

CPU, FLIP = torch.device("cpu"), ("RandomHorizontalFlip", {})
JITTER = ("ColorJitter", {"brightness": .8, "contrast": .8, "saturation": .8, "hue": .2, "p": .8})
rng = np.random.default_rng(0)
images = [
    torch.from_numpy(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in [(50, 70), (64, 48)]
]


def error(ops, count=2, again=False):
    group = policy("global", [Entry(*op) for op in ops], count=count, shared=False)
    assert not triton.unsupported(group)
    uids = np.arange(2) + 7
    keys = keys_of(group, seed=5, epochs=0 * uids, uids=uids)
    table = draw(group, keys, np.array([image.shape[:2] for image in images]))
    views = run_prepared(triton.prepare, group, images, table, device=CPU)
    if again:
        assert torch.equal(views, run_prepared(triton.prepare, group, images, table, device=CPU))
    want = kornia.execute(group, images, table, device=CPU)
    assert views.shape == want.shape
    return 255 * (views - want).abs().max().item()
"""  # NumPy plays the device there: slow, so everything is tiny

CASES = """
late = [("RandomSolarize", {}), ("Normalize", {})]
blur = ("RandomGaussianBlur", {"kernel_size": [9, 7], "p": [1.0, 0.0]})
print("padded", error([("RandomCrop", {"size": [56, 60], "padding": 5}), FLIP, late[1]]))
for resample in ("bilinear", "bicubic"):
    box = {"size": [24, 20], "resample": resample}
    crop, plain = (("RandomResizedCrop", box | {"antialias": a}) for a in (True, False))
    simclr = [crop, FLIP, JITTER, ("RandomGrayscale", {}), blur, *late]  # every kernel
    print(resample + ",simclr", error(simclr, again=True))
    print(resample + ",no_antialias", error([plain, ("RandomVerticalFlip", {})]))
    print(resample + ",no_blur", error([crop, JITTER, late[0]]))
"""

PHILOX = """
import torch, triton, triton.language as tl


@triton.jit
def words(counter, seed, out):
    at = tl.arange(0, 1)
    c0 = tl.load(counter + at).to(tl.uint32)
    c1 = tl.load(counter + 1 + at).to(tl.uint32)
    c2 = tl.load(counter + 2 + at).to(tl.uint32)
    c3 = tl.load(counter + 3 + at).to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(seed), c0, c1, c2, c3)
    tl.store(out + at, a.to(tl.int64))
    tl.store(out + 1 + at, b.to(tl.int64))
    tl.store(out + 2 + at, c.to(tl.int64))
    tl.store(out + 3 + at, d.to(tl.int64))


counter = torch.tensor([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344])
out = torch.empty(4, dtype=torch.int64)
words[(1,)](counter, torch.tensor(0x299F31D0A4093822), out)
print(*(f"{word:08x}" for word in out.tolist()))
"""


def interpret(script, code):
    """What the code prints, word by word; a file, because Triton reads the source."""
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_kernels_equal_kornia(tmp_path):
    words = interpret(tmp_path / "run.py", START + CASES)
    errors = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert len(errors) == 7
    assert all(error < 0.01 for error in errors.values()), errors  # of an 8-bit level


def test_tritons_philox_is_ours(tmp_path):
    """The known answer of Random123 that `rng` is tested against."""
    words = interpret(tmp_path / "run.py", PHILOX)
    assert words == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


TYPES = {
    "pixels": "*u8", "offsets": "*i64", "sides": "*i32", "table": "*fp32", "means": "*fp32",
    "source": "*fp32", "out": "*bf16",
}  # fmt: skip
SHAPE = {"HEIGHT": 224, "WIDTH": 224, "TILE": executor.TILE}


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("name", ["stats", "colour", "blur"])
def test_the_kernels_compile_for_an_h100(name, radius, tmp_path, monkeypatch):
    """Down to machine code, which needs no GPU; the interpreter accepts more than the compiler."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(executor.triton_kernels, name)
    chosen = {"RADIUS": radius, "ANTIALIAS": True, "FINISH": True, "REACH": 11, "DOWN": radius > 0}
    constants = {k: v for k, v in (SHAPE | chosen).items() if k in kernel.arg_names}
    types = {k: TYPES.get(k, "constexpr" if k.isupper() else "fp32") for k in kernel.arg_names}
    target = GPUTarget("cuda", 90, 32)
    built = triton.compile(ASTSource(kernel, types, constants), target=target)
    assert built.asm["cubin"]


def built_policy(*ops, count=1):
    return policy("global", [Entry(*op) for op in ops], count=count, shared=False)


def test_it_supports_the_usual_ops_in_the_usual_order():
    crop, flip = ("RandomCrop", {"size": [8, 8]}), ("RandomHorizontalFlip", {})
    jitter, grey, norm = ("ColorJitter", {"hue": 0.1}), ("RandomGrayscale", {}), ("Normalize", {})
    assert executor.unsupported(built_policy(crop)) == []
    assert executor.unsupported(built_policy(crop, flip, jitter, flip, grey, norm, flip)) == []
    assert executor.unsupported(built_policy(crop, grey, jitter, norm)) == ["ColorJitter"]
    assert executor.unsupported(built_policy(crop, jitter, jitter)) == ["ColorJitter"]
    invert = ("RandomInvert", {})
    assert executor.unsupported(built_policy(crop, invert, grey)) == ["RandomInvert"]


def test_its_table_names_every_draw_and_leaves_the_rest_off():
    group = built_policy(
        ("RandomCrop", {"size": [8, 8]}),
        *(("RandomHorizontalFlip", {"p": 1.0}), ("RandomHorizontalFlip", {"p": 1.0})),
        *(("RandomVerticalFlip", {"p": 1.0}), ("ColorJitter", {"hue": 0.1})),
        ("RandomSolarize", {"p": 1.0, "thresholds": [0.25, 0.25]}),
        count=2,
    )
    table = np.arange(2 * 3 * len(group.columns), dtype=np.float32).reshape(2, 3, -1)
    table[..., 4:7] = 1
    usual = executor.usual_table(group, table)
    assert usual.shape == (2, 3, len(executor.COLUMNS))
    found = dict(zip(executor.COLUMNS, np.moveaxis(usual, -1, 0), strict=True))
    assert np.array_equal(usual[..., :4], table[..., :4])
    assert (found["hflip"] == 0).all()
    assert (found["vflip"] == 1).all()
    assert np.array_equal(found["hue"], table[..., group.columns.index("ColorJitter.hue")])
    assert np.array_equal(found["order3"], table[..., group.columns.index("ColorJitter.order3")])
    assert np.array_equal(found["threshold"], table[..., -1])
    assert not found["grey"].any()
    assert not found["blur"].any()
