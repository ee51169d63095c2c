"""The triton executor in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sslpipe.device.ragged import Ragged
from sslpipe.modalities.image.draws import policy
from sslpipe.recipe.names import Entry

triton = pytest.importorskip("triton")  # comes with torch on Linux only
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sslpipe.modalities.image.executors import triton as executor  # noqa: E402
from sslpipe.modalities.image.executors import (  # noqa: E402
    triton_colour,
    triton_kernels,
    triton_shrink,
    triton_tables,
)

ROOT = Path(__file__).parents[3]

START = """
import numpy as np, torch
from sslpipe.device.ragged import Ragged
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import kornia, run_prepared, triton
from sslpipe.recipe.names import Entry

CPU, FLIP = torch.device("cpu"), ("RandomHorizontalFlip", {})
JITTER = ("ColorJitter", {"brightness": .8, "contrast": .8, "saturation": .8, "hue": .2, "p": .8})
rng = np.random.default_rng(0)
images = [
    torch.from_numpy(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in [(50, 70), (64, 48)]
]


def views(ops, count=2, dtype=torch.float32, images=images):
    group = policy("global", [Entry(*op) for op in ops], count=count, shared=False)
    assert not triton.unsupported(group)
    uids = np.arange(2) + 7
    keys = group_keys(group, seed=5, epochs=0 * uids, uids=uids)
    table = draw(group, keys, np.array([image.shape[:2] for image in images]))
    made = run_prepared(triton.prepare, group, images, table, device=CPU, dtype=dtype)
    return made, kornia.execute(group, images, table, device=CPU)


def error(ops, **settings):
    made, want = views(ops, **settings)
    assert made.shape == want.shape
    return 255 * (made.float() - want).abs().max().item()
"""  # NumPy plays the device there: slow, so everything is tiny

CASES = """
late = [("RandomSolarize", {}), ("Normalize", {})]
blur = ("RandomGaussianBlur", {"kernel_size": [9, 7], "p": [1.0, 0.0]})
print("padded", error([("RandomCrop", {"size": [56, 60], "padding": 5}), FLIP, late[1]]))
print("cut,jitter", error([("RandomCrop", {"size": [40, 36]}), FLIP, JITTER]))
for resample in ("bilinear", "bicubic"):
    box = {"size": [24, 20], "resample": resample}
    crop, plain = (("RandomResizedCrop", box | {"antialias": a}) for a in (True, False))
    simclr = [crop, FLIP, JITTER, ("RandomGrayscale", {}), blur, *late]  # every kernel
    print(resample + ",simclr", error(simclr))
    print(resample + ",no_antialias", error([plain, ("RandomVerticalFlip", {})]))
    print(resample + ",no_blur", error([crop, JITTER, late[0]]))
"""

OUTSIDE = """
from sslpipe.modalities.image.executors import planar, planar_crop
from sslpipe.modalities.image.scale import needed
from sslpipe.device import arena

for resample in ("bilinear", "bicubic"):
    for crop in (
        ("RandomResizedCrop", {"size": [24, 20], "scale": [0.05, 0.4], "resample": resample}),
        ("RandomResizedCrop", {"size": [24, 20], "scale": [0.05, 0.4], "resample": resample,
                               "antialias": False}),
        ("CenterCrop", {"size": [30, 20], "resize": 60, "resample": resample}),
        ("RandomCrop", {"size": [30, 20], "padding": 5}),
    ):
        group = policy("global", [Entry(*crop), Entry(*FLIP)], count=2, shared=False)
        uids, sides = np.arange(2) + 7, np.array([image.shape[:2] for image in images])
        table = draw(group, group_keys(group, seed=5, epochs=0 * uids, uids=uids), sides)
        spoiled = [torch.full_like(image, 255 * i) for i, image in enumerate(images)]
        for n, (first, last) in enumerate(needed([group], {"global": table}, sides).tolist()):
            inside = np.s_[first >> 16 : last >> 16, first & 0xFFFF : last & 0xFFFF]
            spoiled[n][inside] = images[n][inside]
        made = [run_prepared(triton.prepare, group, each, table, device=CPU, dtype=torch.float32)
                for each in (images, spoiled)]
        taps = planar_crop.tap_count(group, table)
        planes = [planar.chain(group, taps, torch.float32)(*arena.upload(each, table, device=CPU)
                  .tensors) for each in (images, spoiled)]
        spoils = [not torch.equal(*pair) for pair in zip(images, spoiled)]
        print(torch.equal(*made), torch.equal(*planes), all(spoils))
"""

HALF = """
crop = ("RandomResizedCrop", {"size": [24, 20], "resample": "bicubic"})
blur = ("RandomGaussianBlur", {"kernel_size": [9, 7]})
ops = [crop, FLIP, JITTER, ("RandomGrayscale", {}), blur]
for dtype in (torch.float16, torch.bfloat16):
    made, want = views(ops, dtype=dtype)
    assert made.dtype == dtype
    off = 255 * (made.float() - want).abs()
    print(str(dtype), off.max().item(), off.mean().item())
"""

SPANS = """
crop = ("RandomResizedCrop", {"size": [24, 20]})
ops = [crop, JITTER, ("RandomGaussianBlur", {"kernel_size": [5] * 2})]
whole, _ = views(ops)
assert torch.equal(whole, views(ops)[0])
ragged = Ragged.of(images)
assert torch.equal(whole, views(ops, images=ragged)[0])
triton.SCRATCH = 1
assert torch.equal(whole, views(ops, images=ragged)[0])
print("equal")
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
def test_nothing_outside_the_boxes_is_read(tmp_path):
    """By the kernels, and by the planes of the compiled executor: `scale.needed` says what is."""
    words = interpret(tmp_path / "run.py", START + OUTSIDE)
    assert words == ["True"] * 24


@pytest.mark.slow
def test_the_kernels_equal_kornia(tmp_path):
    words = interpret(tmp_path / "run.py", START + CASES)
    errors = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert len(errors) == 8
    assert all(error < 0.01 for error in errors.values()), errors  # of an 8-bit level


@pytest.mark.slow
def test_half_views_differ_by_their_rounding_and_a_level(tmp_path):
    """Scratch of float16 is 0.06 levels off at white; factors of up to 1.8 each enlarge it."""
    words = interpret(tmp_path / "run.py", START + HALF)
    for name, rounding in (("torch.float16", 0.0625), ("torch.bfloat16", 0.5)):
        most, mean = map(float, words[words.index(name) + 1 :][:2])
        assert most < 1 + rounding
        assert mean < 0.1 + rounding  # the interpreter cuts bfloat16 off, a GPU rounds


@pytest.mark.slow
def test_spans_of_scratch_and_ragged_canvases_change_no_bit(tmp_path):
    assert interpret(tmp_path / "run.py", START + SPANS) == ["equal"]


SHRINK = """
from sslpipe.modalities.image import gpu_shrink
from sslpipe.modalities.image.gpu_decode import shrink

planes = [image.permute(2, 0, 1) for image in images]
planes[1] = planes[1].contiguous()  # both layouts
for limit in (1 << 28, 1):
    gpu_shrink.SCRATCH = limit
    for targets in ([(20, 28), (32, 24)], [(50, 70), (40, 30)]):
        made = gpu_shrink.canvases(planes, targets)
        for canvas, plane, target in zip(made, planes, targets):
            off = (canvas.int() - shrink(plane, target).int()).abs()
            assert canvas.shape == (*target, 3)
            print(off.max().item(), off.float().mean().item())
flat = torch.full((3, 40, 41), 7, dtype=torch.uint8)
assert gpu_shrink.extremes([*planes, flat]) == [(0, 255), (0, 255), (7, 7)]
"""


def test_lists_are_shrunk_as_one_by_one(tmp_path):
    words = interpret(tmp_path / "run.py", START + SHRINK)
    assert len(words) == 2 * 2 * 2 * 2
    assert max(map(float, words[::2])) <= 1  # where float32 falls on the other side of a half
    assert max(map(float, words[1::2])) < 1e-3


def test_tritons_philox_is_ours(tmp_path):
    """The known answer of Random123 that `rng` is tested against."""
    words = interpret(tmp_path / "run.py", PHILOX)
    assert words == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


TYPES = {
    "pixels": "*u8", "places": "*i64", "table": "*fp32", "means": "*fp32", "out": "*bf16",
}  # fmt: skip
SHRINKING = {"shrink_across": None, "shrink_down": "*u8", "extremes": "*i32"}
SHAPE = {"HEIGHT": 224, "WIDTH": 224, "SIZE": 224 * 224}
KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (triton_kernels, ("across", "down", "cut", "blur")),
        (triton_colour, ("colour", "grey")),
        (triton_shrink, ("shrink_across", "shrink_down", "extremes")),
    )
    for name in names
}


@pytest.mark.parametrize("scratch", ["*fp16", "*fp32"])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compile_for_an_h100(name, radius, scratch, tmp_path, monkeypatch):
    """Down to machine code, which needs no GPU; the interpreter accepts more than the compiler."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = KERNELS[name]
    chosen = {"RADIUS": radius, "ANTIALIAS": True, "REACH": 11, "DOWN": radius > 1}
    sizes = {**executor.TILE, "TILE": executor.FLAT}
    constants = {k: v for k, v in (SHAPE | chosen | sizes).items() if k in kernel.arg_names}
    types = {k: argument_type(name, k, scratch) for k in kernel.arg_names}
    target = GPUTarget("cuda", 90, 32)
    built = triton.compile(ASTSource(kernel, types, constants), target=target)
    assert built.asm["cubin"]


def argument_type(kernel, name, scratch):
    """The type of a kernel's argument, by its name."""
    if name in ("half", "out") and kernel in SHRINKING:
        return SHRINKING[kernel] if name == "out" else "*fp32"
    if name in ("half", "sharp", "source"):
        return scratch
    return TYPES.get(name, "constexpr" if name.isupper() else "fp32")


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
    usual = triton_tables.usual_table(group, table)
    assert usual.shape == (2, 3, len(triton_tables.COLUMNS))
    found = dict(zip(triton_tables.COLUMNS, np.moveaxis(usual, -1, 0), strict=True))
    assert np.array_equal(usual[..., :4], table[..., :4])
    assert (found["hflip"] == 0).all()
    assert (found["vflip"] == 1).all()
    assert np.array_equal(found["hue"], table[..., group.columns.index("ColorJitter.hue")])
    assert np.array_equal(found["order3"], table[..., group.columns.index("ColorJitter.order3")])
    assert np.array_equal(found["threshold"], table[..., -1])
    assert not found["grey"].any()
    assert not found["blur"].any()


def test_spans_are_packed_and_limited_and_a_large_view_stands_alone():
    heights = np.array([10, 20, 900, 5, 5])
    offsets, spans = triton_tables.plan(heights, 8, 2 * 3 * 8 * 8, 2, limit=4000)
    assert [(span.first, span.last) for span in spans] == [(0, 2), (2, 3), (3, 5)]
    assert offsets.tolist() == [0, 240, 0, 0, 128]
    assert [(span.values, span.tallest) for span in spans] == [(720, 20), (21600, 900), (256, 5)]


def test_canvases_of_one_buffer_are_neither_copied_nor_looked_into():
    canvases = Ragged.of([torch.zeros(h, 7, 3, dtype=torch.uint8) for h in (3, 30, 4)])
    flat, offsets, sides = triton_tables.packed(canvases, torch.device("cpu"))
    assert flat.data_ptr() == canvases.flat_N.data_ptr()
    assert offsets.tolist() == [0, 64, 704]
    assert sides.tolist() == [[3, 7], [30, 7], [4, 7]]
