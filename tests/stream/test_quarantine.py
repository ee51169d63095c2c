"""How many bad samples stop a run, and what is written of them."""

import json

import pytest

from sslpipe.errors import ShardError
from sslpipe.stream.quarantine import Quarantine
from sslpipe.stream.source import Fault


def fault(row, shard="a.tar"):
    return Fault(shard, row, None, None, f"{shard} sample {row}: broken", 0, "b2:00")


def test_few_bad_samples_met_again_and_again_do_not_stop_a_small_set():
    record = Quarantine(None, max_fraction=0.001)
    for step in range(100):
        record.report([fault(row) for row in range(10)], samples=16, step=step)
    assert record.total == 1000


def test_more_than_the_fraction_stops_with_the_first_few_by_name():
    record = Quarantine(None, max_fraction=0.001)
    record.report([fault(row) for row in range(10)], samples=16, step=0)
    with pytest.raises(ShardError, match=r"11 of the first 32 .* sample 0: broken; a.tar sample 1"):
        record.report([fault(99)], samples=16, step=1)


def test_a_large_set_may_have_its_fraction():
    record = Quarantine(None, max_fraction=0.001)
    for step in range(100):
        record.report([fault(step)], samples=1000, step=step)
    with pytest.raises(ShardError, match="101 of the first 100,016"):
        record.report([fault(100)], samples=16, step=100)


def test_one_line_per_row_also_after_a_resume_and_a_line_cut_by_a_crash(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    record = Quarantine(path, max_fraction=1)
    record.report([fault(1), fault(2), fault(1)], samples=8, step=3)
    record.report([fault(1, "b.tar"), fault(2)], samples=8, step=4)
    whole = path.read_text()
    path.write_text(whole[:-5])
    Quarantine(path, max_fraction=1).report([fault(1), fault(1, "b.tar")], samples=8, step=9)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["shard"], row["row"], row["step"]) for row in rows] == [
        ("a.tar", 1, 3), ("a.tar", 2, 3), ("b.tar", 1, 9),
    ]  # fmt: skip
    assert set(rows[0]) == {"shard", "row", "uid", "key", "reason", "epoch", "manifest", "step"}
