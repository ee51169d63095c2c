"""What `auto` stands for, and views of half precision of the executors that run on a CPU."""

import logging

import numpy as np
import pytest
import torch

from sslpipe.modalities.image.draws import policy
from sslpipe.modalities.image.executors import choose, cpu, kornia
from sslpipe.recipe.names import Entry

CPU = torch.device("cpu")
CROP, INVERT = ("RandomResizedCrop", {"size": [40, 56]}), ("RandomInvert", {})


def build(*ops, group="global"):
    return policy(group, [Entry(*op) for op in ops], count=1, shared=False)


def test_auto_says_once_per_group_what_it_stands_for(caplog):
    with caplog.at_level(logging.INFO):
        for views in (build(CROP), build(CROP, INVERT, group="local")):
            choose("auto", views, CPU)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "views.global",
        "views.local",
    ]
    assert "executor cpu" in caplog.text
    assert "executor kornia, not cpu: it does not know RandomInvert" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("execute", [cpu.execute, kornia.execute])
def test_half_views_are_those_of_float32_rounded_once(execute, dtype):
    group = build(CROP)
    table = np.array([[[0, 0, 60, 50]]], dtype=np.float32)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    views = execute(group, [image], table, device=CPU, dtype=dtype)
    assert torch.equal(views, execute(group, [image], table, device=CPU).to(dtype))
