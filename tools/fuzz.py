"""Spoiled files of every kind: does anything crash, hang, print, or pass that the rules forbid?

    python tools/fuzz.py [--images 5000] [--others 500] [--seconds 600] [--seed 0] [--out fuzz]
    python tools/fuzz.py --case image:1234          one case again, here, with its trace

Images are decoded in child processes, which may crash or hang; tars, sets, labels, tables, recipes
and what a run leaves behind are read in this one. Every case is a function of (seed, number), so
that `--case` makes it again; a finding's bytes are kept in OUT. Findings: an exception that is none
of ours, the end of a process, more than 10 s of a core or 1 GiB, anything on stdout or stderr, and
whatever `fuzz_images.py` and `fuzz_files.py` say must hold. The exit status is 1 if there is any.
"""

import argparse
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from fuzz_files import Files
from fuzz_images import check_image, image_case
from fuzz_mutations import Case

HANG = 10  # seconds of a core
PATIENCE = 60  # seconds of the clock, where nothing comes at all
START = 120  # seconds that a child may take to import
SHOWN = 20  # findings
HERE = Path(__file__).parent


class Finding(NamedTuple):
    """A case, and what is wrong with it."""

    kind: str
    number: int
    what: str


class Hang(BaseException):
    """A case takes too long; no library catches it."""


class Child:
    """A process that decodes images; a new one takes the place of one that ended."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-W", "always", HERE / "fuzz_images.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.answer(process, START)
        return process

    def answer(self, process: "subprocess.Popen[str]", seconds: float) -> str:
        """A line; empty: none came in time."""
        assert process.stdout
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else ""

    def check(self, number: int) -> list[str]:
        """What is wrong with an image."""
        assert self.process.stdin
        print(self.seed, number, file=self.process.stdin)
        line = self.answer(self.process, PATIENCE)
        if line:
            return list(json.loads(line))
        hangs = self.process.poll() is None and not self.ended()
        self.process.kill()
        code = self.process.wait()
        self.close()
        self.process = self.start()
        return [f"takes more than {PATIENCE} s" if hangs else f"ends the process ({code})"]

    def ended(self) -> bool:
        """Whether it is ending: its pipe closes a moment before."""
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        with suppress(BrokenPipeError), self.process:
            pass  # closes its pipes and waits


def fuzz_images(seed: int, count: int, until: float, children: int) -> Iterator[list[Finding]]:
    """The findings of each image, in no order."""
    numbers = iter(range(count))

    def work(child: Child) -> list[tuple[int, list[str]]]:
        return [(n, child.check(n)) for n in itertools.islice(numbers, 50) if time.time() < until]

    with ThreadPoolExecutor(children) as pool:
        crew = list(pool.map(lambda _: Child(seed), range(children)))
        try:
            while results := [one for done in pool.map(work, crew) for one in done]:
                for number, found in results:
                    yield [Finding("image", number, what) for what in found]
        finally:
            for child in crew:
                child.close()


def fuzz_files(
    files: Files, kind: str, seed: int, count: int, until: float
) -> Iterator[list[Finding]]:
    """The findings of each case of a kind, in this process."""
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGPROF, give_up)
    for number in range(count):
        if time.time() > until:
            return
        set_alarms(HANG, PATIENCE)
        try:
            found = files.check(kind, files.case(kind, seed, number))
        except Hang:
            found = [f"takes more than {HANG} s"]
        finally:
            set_alarms(0, 0)
        yield [Finding(kind, number, what) for what in found]


def set_alarms(core: float, clock: float) -> None:
    """Interrupt what takes longer; 0: not any more."""
    signal.setitimer(signal.ITIMER_PROF, core)
    signal.setitimer(signal.ITIMER_REAL, clock)


def give_up(number: int, frame: FrameType | None) -> None:
    raise Hang


def keep(finding: Finding, case: Case, out: Path) -> None:
    """Write the bytes of a finding, and show the first few."""
    out.mkdir(parents=True, exist_ok=True)
    suffix = Path(case.seed.split()[-1]).suffix
    (out / f"{finding.kind}-{finding.number}{suffix}").write_bytes(case.data)
    made = f"{case.seed}: {', '.join(case.kinds)}"
    print(f"{finding.kind}:{finding.number} ({made}): {finding.what}"[:400], flush=True)


def show_table(done: Counter[str], bad: Counter[str], seconds: float) -> None:
    print(f"\n{'kind':10}{'cases':>10}{'findings':>10}")
    for kind, number in done.items():
        print(f"{kind:10}{number:10,}{bad[kind]:10,}")
    print(f"{done.total():,} cases in {seconds:,.0f} s")


def campaign(options: argparse.Namespace, files: Files) -> int:
    """Run until the numbers or the seconds are reached; the exit status."""
    start, seed = time.time(), options.seed
    until = start + options.seconds
    done, bad = Counter[str](), Counter[str]()
    runs = {"image": fuzz_images(seed, options.images, until, options.children)}
    for kind in files.seeds:
        runs[kind] = fuzz_files(files, kind, seed, options.others, until)
    for kind, run in runs.items():
        for findings in run:
            done[kind] += 1
            for finding in findings:
                bad[kind] += 1
                if bad[kind] <= SHOWN:
                    case = case_of(files, kind, seed, finding.number)
                    keep(finding, case, options.out)
            if done[kind] % 1000 == 0:
                print(f"{kind}: {done[kind]:,}, {bad[kind]:,} findings", flush=True)
    show_table(done, bad, time.time() - start)
    return min(1, bad.total())


def case_of(files: Files, kind: str, seed: int, number: int) -> Case:
    """A case of any kind."""
    return image_case(seed, number) if kind == "image" else files.case(kind, seed, number)


def one_case(options: argparse.Namespace, files: Files) -> int:
    """Make one case again, keep it and say what is wrong with it."""
    kind, _, number = options.case.partition(":")
    case = case_of(files, kind, options.seed, int(number))
    found = check_image(case) if kind == "image" else files.check(kind, case)
    for what in found or ["nothing is wrong"]:
        keep(Finding(kind, int(number), what), case, options.out)
    return min(1, len(found))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--others", type=int, default=500, help="cases of each other kind")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=os.cpu_count())
    parser.add_argument("--case", help="KIND:NUMBER")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        return one_case(options, files) if options.case else campaign(options, files)


if __name__ == "__main__":
    sys.exit(main())
