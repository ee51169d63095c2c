"""The script that times kernels: what of it needs no GPU, and its variants in the interpreter."""

import os
import subprocess
import sys

import pytest

from ..conftest import ROOT, load_tool

pytest.importorskip("triton")  # comes with torch on Linux only

VARIANTS = """
import gpu_kernels, gpu_variants, numpy as np, torch
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import kornia
from sslpipe.recipe.names import Entry

CPU = torch.device("cpu")
box = {"size": [40, 36], "resample": "bicubic"}
blur = ("RandomGaussianBlur", {"kernel_size": [9, 9]})
ops = [("RandomResizedCrop", box), ("RandomHorizontalFlip", {}), ("ColorJitter", {}), blur]
group = policy("global", [Entry(*op) for op in ops], count=2, shared=False)
images = gpu_kernels.photos(2, (60, 70), CPU)
uids = np.arange(2)
keys = group_keys(group, seed=5, epochs=0 * uids, uids=uids)
table = draw(group, keys, images.shapes_BD[:, :2])
want = kornia.execute(group, images, table, device=CPU)
tile = {"CHUNK": 16, "TALL": 16, "WIDE": 32, "num_warps": 4}
blurs = [{"blur_by": {**tile, "PLANES": planes}} for planes in (1, 3)]
for constants in ({"across_by": tile}, {"down_by": tile}, *blurs):
    make = gpu_variants.prepare(group, images, table, device=CPU, dtype=torch.float16, **constants)
    print(gpu_kernels.apart(make(), want, group)["most_levels"])
"""


@pytest.mark.slow
def test_the_fused_variants_are_within_a_level_of_kornia():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools" / "bench")])
    done = subprocess.run(
        [sys.executable, "-c", VARIANTS],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4
    assert all(float(levels) < 1 for levels in done.stdout.split())


def test_its_cases_are_the_groups_of_the_recipes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "bench")
    kernels = load_tool("gpu_kernels")
    made = kernels.cases(kernels.photos(3, (200, 260), "cpu"))
    assert [case.name for case in made] == ["simclr global", "dino global", "dino local"]
    assert [case.views for case in made] == [6, 6, 24]
