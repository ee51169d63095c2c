import json
from types import SimpleNamespace

import pytest

from sslpipe.modalities.parts import Units
from sslpipe.train.log import JsonLines, Meter, TensorBoard

from ..conftest import room


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_appended_and_flushed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, step=0)
    log.row({"step": 1, "loss": 0.5})
    log.row({"step": 2, "loss": float("nan")})
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    log.close()


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    log = JsonLines(path, step=20)
    log.row({"step": 25})
    log.close()
    assert [row["step"] for row in lines(path)] == [10, 20, 25]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n')
    JsonLines(path, step=0).close()
    assert path.read_text() == ""


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, loss in ((0, 1.0), (10, 2.0)):  # the second attempt resumes at step 10
        board = TensorBoard(tmp_path, step=start)
        for step in range(start + 5, 25, 5):
            board.row({"step": step, "loss": loss})
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(5, 1.0), (10, 1.0), (15, 2.0), (20, 2.0)]


def test_meter(monkeypatch):
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr("sslpipe.train.log.time.perf_counter", lambda: next(clock))
    pipeline = SimpleNamespace(wait_seconds=7.0, units=Units("image"))
    meter = Meter(pipeline, step=10, samples_per_step=32)
    pipeline.wait_seconds = 7.5
    assert meter.read(15) == {"images_per_s": pytest.approx(80.0), "data_wait": 0.25}
    assert meter.read(16) == {"images_per_s": pytest.approx(8.0), "data_wait": 0.0}


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard])
def test_a_full_disk_names_the_file_and_prints_no_trace(tmp_path, kind, capfd):
    with room(4_000):
        sink = kind(tmp_path / "metrics.jsonl" if kind is JsonLines else tmp_path, step=0)
        for step in range(20):
            sink.row({"step": step, "loss": 1.0})
        large = {"step": 20, **{f"loss {n}": 1.0 for n in range(600)}}
        with pytest.raises(OSError, match="File too large") as told:
            sink.row(large)
    (file,) = tmp_path.iterdir()
    assert told.value.filename == str(file)
    assert capfd.readouterr() == ("", "")
    sink.close()
