"""Scaled decoding: the table is the same, no view is enlarged, and the views look alike."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

import sslpipe
from sslpipe.modalities.image.canvases import CanvasDecode, canvas_sides, side_at
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import decode
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import kornia
from sslpipe.modalities.image.scale import factors, fitted
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.names import Entry
from sslpipe.shards import PackSettings, pack
from sslpipe.stream.reader import Sample

CPU = torch.device("cpu")
CROP = ("RandomResizedCrop", {"size": [32, 24], "scale": [0.2, 1.0], "resample": "bicubic"})
LOCAL = ("RandomResizedCrop", {"size": [12, 12], "scale": [0.05, 0.4], "resample": "bicubic"})


def group(*ops, count=2):
    return policy("global", [Entry(*op) for op in ops], count=count, shared=False)


def factor(policies, sides, uid=0, *, size=None):
    """The factor of one sample in epoch 0."""
    arrays = {"epochs": np.array([0]), "uids": np.array([uid]), "sides_B2": np.array([sides])}
    return int(factors(policies, seed=3, size=size, **arrays)[0])


def photo(height, width, seed=0):
    """A smooth picture with texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 150), max(2, width // 150), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 4, (height, width, 1))).clip(0, 255).astype(np.uint8)


def stored(pixels, uid=0, sides=(0, 0)):
    jpeg = simplejpeg.encode_jpeg(pixels, quality=92, colorspace="RGB", colorsubsampling="420")
    return Sample(uid, "key", -1, jpeg, 1, (*sides, 0, 0))


def table(policy, nominal, uid):
    keys = group_keys(policy, seed=3, epochs=np.array([0]), uids=np.array([uid]))
    return draw(policy, keys, np.array([nominal]))


def placed(policy, nominal, actual, uid):
    return fitted(policy, table(policy, nominal, uid), np.array([nominal]), np.array([actual]))


@pytest.mark.parametrize("size", [None, 64, 75, 200])
def test_the_canvas_is_known_from_the_header(size):
    for height, width in [(300, 401), (333, 250), (60, 90), (1021, 777)]:
        pixels = photo(height, width)
        sides = decode(stored(pixels).data, size=size).shape[:2]
        assert canvas_sides((height, width), size) == sides


@pytest.mark.parametrize("size", [None, 100, 203])
def test_no_view_is_enlarged_and_the_next_factor_would_enlarge_one(size):
    groups, found = [group(CROP), group(LOCAL, count=4)], []
    for uid in range(60):
        sides = (60 + 11 * uid, 90 + 9 * uid)
        f = factor(groups, sides, uid, size=size)
        found.append(f)
        nominal, actual = (
            canvas_sides(sides, size),
            canvas_sides(sides, side_at(sides, size, f), f),
        )
        for g in groups:
            if f > 1:
                assert (placed(g, nominal, actual, uid)[..., 3:1:-1] >= g.crop.size).all()
        room = [(table(g, nominal, uid)[..., 3:1:-1] / g.crop.size).min() for g in groups]
        assert f == 8 or min(room) < 2 * f
    assert len(set(found)) > 1


def test_many_samples_are_decided_as_each_alone():
    groups, uids = [group(CROP), group(LOCAL, count=4)], np.arange(50)
    sides = np.stack([50 + 40 * uids, 80 + 35 * uids], axis=1)
    sides[::7] = 0  # not known
    together = factors(groups, seed=3, size=None, epochs=uids * 0, uids=uids, sides_B2=sides)
    assert together.tolist() == [factor(groups, s, u) for s, u in zip(sides, uids, strict=True)]
    assert (together[::7] == 1).all()
    assert set(together.tolist()) == {1, 2, 4, 8}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [None, 150])
def test_the_table_is_the_same_and_the_views_look_alike(size, turned):
    ours, decode_canvas, scaled = group(CROP), CanvasDecode(size), 0
    for uid in range(6):
        sample = stored(photo(401, 600, uid), uid)
        if turned:
            exif = Image.Exif()
            exif[0x0112] = 6
            segment = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
            marker = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
            sample = sample._replace(data=sample.data[:2] + marker + sample.data[2:])
        sides = decode_canvas.extent(sample)
        assert sides == ((600, 401) if turned else (401, 600))
        f = factor([ours], sides, uid, size=size)
        small, whole = decode_canvas(sample, (f,)), decode_canvas(sample, (1,))
        assert small.extent == whole.extent == whole.data.shape[:2]
        scaled += small.data.shape != whole.data.shape
        a, b = (
            kornia.execute(
                ours,
                [torch.from_numpy(c.data)],
                placed(ours, c.extent, c.data.shape[:2], uid),
                device=CPU,
            )
            for c in (small, whole)
        )
        assert (a - b).abs().mean() * 255 < 5  # half a pixel of the view; unrelated: 70
    assert scaled >= 3


def test_what_libjpeg_cannot_scale_is_decoded_whole():
    png = io.BytesIO()
    Image.fromarray(photo(300, 400)).save(png, "PNG")
    sample = Sample(0, "key", -1, png.getvalue())
    assert CanvasDecode(None).extent(sample) == (0, 0)
    raw = CanvasDecode(None)(sample, (4,))
    assert raw.data.shape == (*raw.extent, 3) == (300, 400, 3)


LIGHT = """
import pickle, sys
from types import SimpleNamespace
decode, data = pickle.load(sys.stdin.buffer)
raw = decode(SimpleNamespace(data=data), (2,))
print(raw.data.shape, raw.extent, sorted({"torch", "pydantic", "kornia"} & {*sys.modules}))
"""


def test_a_worker_decodes_without_torch_pydantic_or_kornia():
    content = pickle.dumps((CanvasDecode(None), stored(photo(90, 120)).data))
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    assert done.stdout.decode().strip() == "(45, 60, 3) (90, 120) []", done.stderr.decode()


def test_boxes_that_lie_on_the_scaled_pixels_give_the_same_view_within_a_level():
    crop, sample = group(CROP, count=1), stored(photo(800, 1200))
    box = np.array([[[160, 80, 640, 480]]], dtype=np.float32)
    views = [
        kornia.execute(crop, [torch.from_numpy(decode(sample.data, factor=f))], box / f, device=CPU)
        for f in (1, 2, 4, 8)
    ]
    for view in views[1:]:
        assert (view - views[0]).abs().mean() * 255 < 0.7


@pytest.mark.parametrize(
    "op",
    [
        ("RandomCrop", {"size": [24, 24]}),
        ("Resize", {"size": [24, 24], "antialias": False}),
        ("RandomResizedCrop", {"size": [24, 24], "antialias": False}),
    ],
)
def test_crops_that_do_not_average_are_never_scaled(op):
    assert factor([group(op)], (2000, 3000)) == 1
    assert factor([group(CROP), group(op)], (2000, 3000)) == 1


def test_other_crops_follow_the_same_rule():
    central = ("CenterCrop", {"size": [24, 24], "resize": 32})
    assert factor([group(("Resize", {"size": [24, 24]}))], (192, 400)) == 8
    assert factor([group(central)], (128, 400)) == 4
    assert factor([group(central)], (127, 400)) == 2


def test_unscaled_rows_keep_their_boxes_wherever_they_lie():
    crop = group(("RandomCrop", {"size": [40, 40], "padding": 8}))
    rows = np.array([[[-8, 70, 40, 40], [-8, 70, 40, 40]]], dtype=np.float32)
    nominal, actual = np.array([[80, 80], [80, 80]]), np.array([[80, 80], [40, 40]])
    found = fitted(crop, rows, nominal, actual)
    assert found[0].tolist() == [[-8, 70, 40, 40], [-4, 20, 20, 20]]
    assert fitted(crop, rows, nominal, nominal) is rows


RECIPE = """\
modality: image
stream: {batch_size: 4, seed: 0}
decode: {size: null}
run: {threads: 2}
views:
  global:
    count: 2
    ops: [RandomResizedCrop: {size: [32, 32], scale: [0.2, 1.0]}, RandomHorizontalFlip]
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """12 photos of several sizes, and a PNG among them."""
    folder, out = tmp_path_factory.mktemp("large"), tmp_path_factory.mktemp("shards") / "large"
    for i in range(12):
        picture = Image.fromarray(photo(120 + 40 * i, 200 + 20 * i, i))
        picture.save(folder / f"{i:02d}.{'png' if i == 11 else 'jpg'}")
    pack(folder, out, PackSettings(codec=ImageCodec()))
    return out


def run(large, *overrides, rank=0, world_size=1):
    recipe = parse_recipe(RECIPE, path="test.yaml", overrides=overrides)
    with sslpipe.load(recipe, shards=large, device="cpu", rank=rank, world_size=world_size) as pipe:
        shares = [pipe.load_share(step) for step in range(3)]
        canvases = {
            uid: canvas.shape
            for share in shares
            for uid, canvas in zip(share.uids.tolist(), share.columns[0].arrays, strict=True)
        }
        loaded = pipe.summary
        params = {
            int(uid): batch.params["global"][:, b].tolist()
            for batch in pipe
            for b, uid in enumerate(batch.uids)
        }
        reduced, _, samples = (loaded or f"0 of {3 * pipe.spec.size}").split()[:3]
        assert samples == str(3 * pipe.spec.size)
        return canvases, params, int(reduced)


def test_a_run_scales_alike_on_every_topology_and_leaves_the_tables_alone(large):
    canvases, params, scaled = run(large)
    assert scaled >= 8
    joined = {}
    for rank in range(2):
        joined |= run(large, "run.workers=1", rank=rank, world_size=2)[0]
    assert joined == canvases
    never = run(large, "decode.scaled=never")
    assert never[1] == params
    assert never[2] == 0
    assert never[0] != canvases


def test_scaling_and_the_device_change_the_fingerprint():
    plain = parse_recipe(RECIPE).data_fingerprint
    for override in ("decode.scaled=never", "decode.device=cuda"):
        assert parse_recipe(RECIPE, overrides=[override]).data_fingerprint != plain
