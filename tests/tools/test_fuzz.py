"""tools/fuzz.py: a short campaign finds nothing, and what is planted is found."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ..conftest import ROOT

TOOLS = str(ROOT / "tools")


@pytest.fixture(scope="module")
def fuzz():
    """The script as a module; its neighbours stay importable for its children and methods."""
    sys.path.insert(0, TOOLS)
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture
def run(fuzz, tmp_path, capsys):
    """Run words; give the exit status and what was printed."""

    def run(*words):
        code = fuzz.main([*map(str, words), "--out", str(tmp_path / "found"), "--children", "1"])
        return code, capsys.readouterr().out

    return run


def test_a_short_campaign_finds_nothing(run, tmp_path):
    code, out = run("--images", 250, "--others", 25, "--seed", 3)
    assert (code, [*tmp_path.glob("found/*")]) == (0, []), out
    assert "400 cases" in out


def test_a_case_is_the_same_for_ever(fuzz):
    one, two = fuzz.image_case(1, 5), fuzz.image_case(1, 5)
    assert one == two
    assert len({fuzz.image_case(1, number).data for number in range(20)}) > 15


def test_a_fault_is_found_kept_and_made_again(fuzz, run, tmp_path, monkeypatch):
    def accepting(path, *rest):
        raise KeyError("planted")

    monkeypatch.setattr("fuzz_files.load_encoder", accepting)
    code, out = run("--images", 0, "--others", 40)
    assert code == 1
    assert "KeyError: 'planted'" in out
    kept = next(tmp_path.glob("found/record-*.pt"))
    number = kept.stem.removeprefix("record-")
    data = kept.read_bytes()
    code, again = run("--case", f"record:{number}")
    assert code == 1
    assert f"record:{number} (last.pt: " in again
    assert kept.read_bytes() == data


def test_damage_that_passes_is_found(fuzz):
    """A PNG that was cut, and a decoder that lets it pass."""
    import fuzz_images

    name, whole = next(seed for seed in fuzz_images.image_seeds() if seed[0].startswith("PNG 2 8"))
    other = dict(fuzz_images.image_seeds())["JPEG RGB low"]
    case = fuzz.Case(name, ("cut",), whole, other)  # as if the cut one showed another picture
    (what,) = fuzz.check_image(case)
    assert what == "was cut or changed against its checksum, and is taken with other pixels"


CHILD = """
import os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    number = int(line.split()[1])
    if number == 1:
        os.abort()
    if number == 2:
        time.sleep(60)
    print("[]", flush=True)
"""


def test_a_child_that_crashes_or_hangs_is_a_finding_and_replaced(fuzz, tmp_path, monkeypatch):
    (tmp_path / "fuzz_images.py").write_text(CHILD)
    monkeypatch.setattr(fuzz, "HERE", tmp_path)
    monkeypatch.setattr(fuzz, "PATIENCE", 2)
    child = fuzz.Child(0)
    assert child.check(0) == []
    assert child.check(1) == [f"ends the process ({-signal.SIGABRT})"]
    assert child.check(2) == ["takes more than 2 s"]
    assert child.check(3) == []
    child.close()


def test_a_child_tells_what_libraries_print(fuzz, monkeypatch, tmp_path):
    """Also what C prints past `sys.stderr`."""
    import fuzz_images

    script = (
        "import fuzz_images, os, json\n"
        "fuzz_images.image_seeds = lambda: ()\n"
        "fuzz_images.image_case = lambda seed, number: number\n"
        "fuzz_images.check_image = lambda number: (number and os.write(2, b'loud')) and [] or []\n"
        "fuzz_images.serve()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="0 0\n0 1\n0 0\n",
        env={**os.environ, "PYTHONPATH": f"{TOOLS}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert fuzz_images.MEMORY == 2**30
    assert [json.loads(line) for line in done.stdout.splitlines()[1:]] == [
        [], ["printed b'loud'"], [],
    ]  # fmt: skip
