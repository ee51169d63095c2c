"""From rates to the bottleneck, where it is known what binds."""

from dataclasses import replace
from typing import get_args

import pytest

from sslpipe.diagnosis import NEVER, Stages, consistent
from sslpipe.modalities import Costs
from sslpipe.modalities.finding import find_modality, shipped_modalities
from sslpipe.recipe import parse_recipe

DATA = Stages(
    read=20_000, decode=1000, decide=15_000, copy=NEVER, make=4000, augment=3000, pipeline=1000,
    step=None, step_beside=None, end_to_end=1000, cpu_us=300, workers=2, device="cpu", scaled="",
    unit="image", lighter="shrink pictures once with pack --resize", cores=4,
)  # fmt: skip


def test_decoding_binds_and_making_is_next():
    assert DATA.bottleneck == "decoding"
    assert DATA.without("decoding") == pytest.approx(3000)
    assert "pack --resize" in DATA.verdict
    assert "run.workers (now 2, of 4 cores)" in DATA.verdict
    assert "use more cores (run.workers = 4 has all of them)" in replace(DATA, workers=4).verdict


def test_nobody_is_told_to_raise_workers_that_have_nothing_to_do():
    ready = replace(DATA, workers=0, ready=True, read=1000, decode=1000)
    assert ready.bottleneck == "reading"
    assert "set run.cache, or use more ranks" in ready.advice
    starved = replace(
        ready, read=8000, decode=8000, augment=7000, make=9000, pipeline=7000, step=5000,
        step_beside=2000, end_to_end=2000, device="cuda",
    )  # fmt: skip
    assert starved.bottleneck == "Python's lock"
    assert "run.workers" not in starved.advice
    assert "(run.workers, now 2), or more ranks" in replace(starved, ready=False, workers=2).advice


def test_a_verdict_does_not_say_more_than_was_measured():
    even = replace(DATA, make=1000, augment=1000)
    assert even.verdict.startswith("No stage alone is the bottleneck; the longest is making: ")
    assert DATA.verdict.startswith("The bottleneck is decoding: ")
    assert "Only 2 batches were timed" in replace(DATA, batches=2).verdict
    assert "timed" not in DATA.verdict


def test_stages_that_share_cores_leave_their_sum():
    shared = replace(DATA, decode=2000, make=2000, augment=2000, pipeline=1000, end_to_end=1000)
    assert shared.without("making") == pytest.approx(2000)


def test_the_step_binds_and_the_data_would_go_on():
    slow = replace(DATA, step=100, step_beside=98, end_to_end=98)
    assert slow.bottleneck == "the method's step"
    assert slow.without("the method's step") == pytest.approx(1000)


def test_a_step_that_starves_beside_the_pipeline_is_told_from_a_slow_one():
    starved = replace(
        DATA, decode=8000, augment=7000, make=9000, pipeline=7000, step=5000, step_beside=2000,
        end_to_end=2000, device="cuda",
    )  # fmt: skip
    assert starved.bottleneck == "Python's lock"
    assert starved.without("Python's lock") == pytest.approx(5000)
    assert replace(starved, cpu_us=10).bottleneck == "sharing the GPU"
    assert replace(starved, device="cpu").bottleneck == "sharing the cores"


def test_no_stage_is_slower_than_what_it_is_part_of():
    found = consistent(
        {"read": 90, "decode": 95, "decide": 300, "make": 90, "augment": 200, "pipeline": 100,
         "step": 99, "step_beside": 101, "end_to_end": 102}
    )  # fmt: skip
    assert found == {
        "read": 102, "decode": 102, "decide": 300, "make": 200, "augment": 200, "pipeline": 102,
        "step": 102, "step_beside": 102, "end_to_end": 102,
    }  # fmt: skip


def test_rates_are_named_by_the_modality_and_tokens_stand_beside_rows():
    rows = replace(DATA, unit="row", steps="tokens", steps_each=60.0, lighter="keep ids")
    assert rows.said(1000) == "1,000 rows/s, 60,000 tokens/s"
    assert "us per row. The whole runs at 1,000 rows/s, 60,000 tokens/s; at about" in rows.verdict
    assert "keep ids" in rows.verdict
    assert "image" not in rows.verdict
    assert DATA.said(1000) == "1,000 images/s"
    assert DATA.said(3.14159) == "3.14 images/s"


def test_advice_is_of_what_is_not_done_yet():
    made = replace(DATA, make=800, augment=750, pipeline=700, decode=2000, end_to_end=700)
    assert made.bottleneck == "making"
    assert "To change: raise run.threads (now 1), or use smaller" in made.verdict
    assert "To change: use smaller" in replace(made, threads=4).verdict
    assert "To change: use smaller" in replace(made, device="cuda").verdict
    slow = replace(DATA, step=100, step_beside=98, end_to_end=98)
    assert "bf16" in replace(slow, precision="fp32").verdict
    assert "bf16" not in replace(slow, precision="bf16").verdict
    assert "bf16" not in slow.verdict  # of a trainer that is not ours


@pytest.mark.parametrize("name", shipped_modalities())
@pytest.mark.parametrize("cuda", [False, True])
def test_advice_is_of_the_modality(name, cuda):
    """What another modality lacks is no advice: sound is not resized, text has no scale."""
    recipe = parse_recipe(
        f"modality: {name}\nstream: {{batch_size: 1}}\nviews: {{}}", path="t.yaml"
    )
    told = " ".join(find_modality(name).advice(recipe, what, cuda=cuda) for what in get_args(Costs))
    assert ("--resize" in told) == (name == "image")
    assert ("decode.size" in told) == (name in ("image", "video"))
    assert ("tokenizer count" in told) == (name == "text")
    assert ("WAV" in told) == (name == "audio")
    assert ("decode.device: cuda" in told) == (name == "image" and cuda)


def test_a_stage_that_takes_all_of_the_time_by_noise_leaves_a_thousandth():
    noisy = replace(DATA, read=1000, decode=1000, augment=NEVER, pipeline=1001, end_to_end=1000)
    assert noisy.without("reading") == pytest.approx(1_000_000)
    assert noisy.bottleneck == "reading"
