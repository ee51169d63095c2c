"""Reading the bytes at a place: pytest tests/shards/make/test_source.py"""

import errno
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from sslpipe.errors import ExtraError
from sslpipe.shards.make import source
from sslpipe.shards.make.source import Origin, read
from sslpipe.shards.read.download import Patience

CONTENT = bytes(range(256)) * 8


class Web(BaseHTTPRequestHandler):
    """Serves CONTENT at /ok, at /late the second time; refuses other paths by their number.

    It knows no ranges.
    """

    asked = 0

    def do_GET(self):
        Web.asked += self.path == "/late"
        late = 200 if Web.asked > 1 else 503
        status = {"/ok": 200, "/late": late}.get(self.path) or int(self.path[1:])
        self.send_response(status)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args):
        """Be quiet."""


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.pipe_file("/source/file", CONTENT)
    yield "memory://source/file"
    store.rm("/source", recursive=True)


@pytest.fixture
def archive(tmp_path):
    """A zip of 50 members."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(50):
            file.writestr(f"{number}.bin", bytes([number]) * 5000)
    return str(tmp_path / "a.zip")


def failure(place):
    with pytest.raises(OSError, match=r"\w+") as caught:
        read(place)
    return caught.value.errno, caught.value.strerror


def test_files_and_ranges(tmp_path, memory, web):
    (tmp_path / "file").write_bytes(CONTENT)
    for url in (str(tmp_path / "file"), memory, f"{web}/ok"):
        assert read(Origin(url)) == CONTENT
    for url in (str(tmp_path / "file"), memory):
        assert read(Origin(url, span=(100, 300))) == CONTENT[100:400]
        assert read(Origin(url, span=(100, 0))) == b""


def test_members_of_tars_by_their_range(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "file", "x")
        tar.add(tmp_path / "file", "y")
        member = tar.getmember("y")
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmember("y")
    assert read(Origin(str(tmp_path / "a.tar"), span=(member.offset_data, member.size))) == CONTENT


def test_a_request_that_fails_is_tried_again(web, monkeypatch):
    monkeypatch.setattr(source, "FEW", Patience(attempts=2, first=0))
    assert read(Origin(f"{web}/late")) == CONTENT


def test_every_failure_says_why(tmp_path, memory, web, monkeypatch):
    monkeypatch.setattr(source, "FEW", Patience(attempts=2, first=0))
    (tmp_path / "file").write_bytes(CONTENT)
    assert failure(Origin(str(tmp_path / "gone"))) == (errno.ENOENT, "No such file or directory")
    assert failure(Origin(str(tmp_path))) == (errno.EISDIR, "Is a directory")
    assert failure(Origin("memory://source/gone"))[1] == "No such file or directory"
    assert failure(Origin(f"{web}/404"))[1] == "No such file or directory"
    assert failure(Origin(f"{web}/403"))[1] == "HTTP 403 Forbidden"
    assert failure(Origin(f"{web}/503"))[1] == "HTTP 503 Service Unavailable"
    assert "Connect" in failure(Origin("http://127.0.0.1:9/x"))[1]
    assert failure(Origin("unheardof://x"))[1].startswith("unheardof://x: Protocol not known")
    for url in (str(tmp_path / "file"), memory):
        assert failure(Origin(url, span=(2000, 100)))[1].startswith("48 of 100 bytes; the file was")
    assert "takes no ranges" in failure(Origin(f"{web}/ok", span=(0, 10)))[1]


def test_a_denied_file(tmp_path, monkeypatch):
    def denied(place):
        raise PermissionError(errno.EACCES, "Permission denied", place.url)

    monkeypatch.setattr(source, "read_local", denied)
    assert failure(Origin("/root/secret.jpg")) == (errno.EACCES, "Permission denied")


def test_zips_are_opened_once_and_shared_by_threads(archive, monkeypatch):
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda file: (opened.append(file), real(file))[1])
    source.opened_zip.cache_clear()
    places = [Origin(archive, member=f"{i % 50}.bin") for i in range(400)]
    assert read(places[0]) == bytes(5000)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(read, places))
    assert got == [bytes([i % 50]) * 5000 for i in range(400)]
    assert opened == [archive]


def test_few_zips_stay_open(archive, tmp_path):
    for number in range(10):
        copy = tmp_path / f"{number}.zip"
        copy.write_bytes((tmp_path / "a.zip").read_bytes())
        read(Origin(str(copy), member="1.bin"))
    assert source.opened_zip.cache_info().currsize <= source.OPEN_ZIPS


def test_processes_share_no_open_zip(archive, monkeypatch):
    """A fork shares the position in the file: two readers would get each other's bytes."""
    place = Origin(archive, member="1.bin")
    assert pickle.loads(pickle.dumps((read, place))) == (read, place)
    source.opened_zip.cache_clear()
    for process in (1, 2, 2):
        monkeypatch.setattr(source.os, "getpid", lambda process=process: process)
        assert read(place) == bytes([1]) * 5000
    assert source.opened_zip.cache_info().misses == 2


def test_damaged_zips_say_so(archive, tmp_path):
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[36:44] = bytes(8)
    (tmp_path / "b.zip").write_bytes(data)
    code, text = failure(Origin(str(tmp_path / "b.zip"), member="0.bin"))
    assert code == errno.EIO
    assert "0.bin" in text or "decompressing" in text
    assert "no item named" in failure(Origin(archive, member="x"))[1]


def test_a_missing_client_is_not_a_bad_file(monkeypatch):
    def missing(url, **options):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ExtraError, match=r"s3://b/a.jpg: .*sslpipe\[s3\]"):
        read(Origin("s3://b/a.jpg"))
