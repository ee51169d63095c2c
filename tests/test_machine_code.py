"""Compiled code: kept for later processes, compiled anew where it is not whole or not kept."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sslpipe import machine_code

CODE = """
declare i32 @numba_unpickle(i8*, i32, i8*)
define void @twice(i64* %place) {
  %value = load i64, i64* %place
  %never = icmp eq i64 %value, -1
  br i1 %never, label %fails, label %works
fails:
  %status = call i32 @numba_unpickle(i8* null, i32 0, i8* null)
  ret void
works:
  %doubled = mul i64 %value, 2
  store i64 %doubled, i64* %place
  ret void
}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "loops.py"
    path.write_text("# doubles")
    return path


def doubled(source, number):
    """What the function makes of a number, and how often it was compiled for it."""
    compiled = []

    def compile_it():
        compiled.append(1)
        return CODE

    place = ctypes.c_int64(number)
    machine_code.function("twice", [source], compile_it, [ctypes.c_void_p])(ctypes.addressof(place))
    return place.value, len(compiled)


def test_it_is_compiled_once_for_each_text_of_its_sources(home, source):
    assert doubled(source, 21) == (42, 1)
    assert doubled(source, -5) == (-10, 0)
    source.write_text("# doubles, as before")
    assert doubled(source, 3) == (6, 1)
    assert len(list(home.rglob("*.o"))) == 2


def test_that_it_compiles_is_told_where_commands_show_it(home, source, caplog):
    """Warnings come to stderr unasked; what waits 10 s without a word looks as if it hung."""
    doubled(source, 1)
    doubled(source, 2)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["twice: compiles, which takes some seconds, once"]


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_compiled_anew(home, source, damage):
    doubled(source, 1)
    (file,) = home.rglob("*.o")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content if damage is None else damage)
    assert doubled(source, 4) == (8, 1)
    assert doubled(source, 5) == (10, 0)


@pytest.mark.parametrize("why", ["a file", "no home"])
def test_where_nothing_can_be_kept_it_works_and_says_so(home, source, caplog, monkeypatch, why):
    home.write_text("a file where the folder should be")
    if why == "no home":  # of a container that runs as a number
        monkeypatch.setenv("XDG_CACHE_HOME", "~nobody_of_that_name/cache")
    caplog.set_level("INFO")
    assert doubled(source, 4) == (8, 1)
    assert doubled(source, 4) == (8, 1)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    for text in told:
        assert (
            "compiles, which takes some seconds, at every start, as the user's cache takes" in text
        )
        assert text.endswith("; set XDG_CACHE_HOME to a folder with room")


def test_a_full_disk_is_told_and_what_to_set(home, source, caplog, monkeypatch):
    def full(place, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert doubled(source, 4) == (8, 1)
    assert "is not kept (No space left on device), so the next start compiles anew" in caplog.text


@pytest.mark.slow
def test_a_call_into_the_compiler_s_library_ends_the_process_instead_of_going_astray(tmp_path):
    (tmp_path / "code.ll").write_text(CODE)
    script = f"""
import ctypes
from pathlib import Path
from sslpipe import machine_code
code = machine_code.emit(Path({str(tmp_path / "code.ll")!r}).read_text())
function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine_code.address("twice", code))
function(ctypes.addressof(ctypes.c_int64(-1)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode in {-signal.SIGILL, -signal.SIGTRAP}, done.stderr
