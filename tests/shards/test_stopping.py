"""Jobs that nobody waits for end where they are: each test would never end if they did not."""

import os
import signal
import threading
import time
from contextlib import closing, suppress

import pytest

from sslpipe.shards import Processes, open_threads
from sslpipe.shards.stopping import JobStopped, Stoppable, in_threads, left_behind


def endless(folder):
    """Says that it runs, runs until it is stopped, and tidies up."""
    part = folder / "job.part"
    try:
        part.touch()
        while True:
            with suppress(Exception):  # no such one takes it for a fault
                time.sleep(0.001)
    finally:
        part.unlink(missing_ok=True)
        (folder / "tidied").touch()


def wait_for(path):
    while not path.exists():
        time.sleep(0.001)


def test_results_come_in_order_and_an_early_end_stops_what_runs(tmp_path):
    assert [*in_threads(lambda n: n * n, range(9), 4)] == [n * n for n in range(9)]

    def job(number):
        return endless(tmp_path) if number else "first"

    with closing(in_threads(job, range(2), 2)) as results:
        assert next(results) == "first"
        wait_for(tmp_path / "job.part")
    assert [path.name for path in tmp_path.iterdir()] == ["tidied"]


@pytest.mark.parametrize("make", [open_threads, Processes])
def test_a_pool_that_is_left_by_a_ctrl_c_stops_its_jobs(make, tmp_path):
    def stop_when_it_runs():
        wait_for(tmp_path / "job.part")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_it_runs).start()
    with pytest.raises(KeyboardInterrupt), make(1) as pool:
        next(pool.imap_unordered(endless, [tmp_path] * 3, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["tidied"]


def test_jobs_that_come_after_the_stop_do_not_begin():
    jobs = Stoppable()
    assert jobs.run(str, 3) == "3"
    jobs.stop()
    with pytest.raises(JobStopped):
        jobs.run(str, 3)


def test_what_is_left_behind_gives_its_result_or_its_error():
    assert left_behind(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        left_behind(lambda: 1 / 0)
    held = threading.Event()
    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        left_behind(held.wait)
    held.set()
