"""Packing from S3, against a server on loopback: pytest tests/shards/make/test_inputs_s3.py"""

import io
import tarfile

import pytest
import s3fs

from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.make.source import Origin, read

from ...servers import reset_moto

moto_server = pytest.importorskip("moto.server", reason="moto[server] is missing")


@pytest.fixture
def bucket(monkeypatch):
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    reset_moto(host, port)
    store = s3fs.S3FileSystem()
    store.mkdir("photos")
    yield store
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_trees_tars_and_lists_in_a_bucket(bucket, caplog):
    for name in ("in/cat/1.jpg", "in/cat/1.txt", "in/dog/2.jpg", "in/.hidden/3.jpg"):
        bucket.pipe_file(f"photos/{name}", name.encode())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("4.jpg")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"four"))
    bucket.pipe_file("photos/a-000.tar", buffer.getvalue())
    bucket.pipe_file("photos/list.txt", b"in/dog/2.jpg\ns3://photos/in/cat/1.jpg\n")

    def offer(*inputs):
        listing = list_inputs(inputs, out="s3://photos/out", extensions={"jpg"})
        return listing, {s.key: read(s.place) for s in listing.sources}

    tree, got = offer("s3://photos/in")
    assert got == {"cat/1": b"in/cat/1.jpg", "dog/2": b"in/dog/2.jpg"}
    assert [(s.label, s.size) for s in tree.sources] == [(0, 12), (1, 12)]
    assert [[(e, read(p)) for e, p in s.extras] for s in tree.sources] == [
        [("txt", b"in/cat/1.txt")], [],
    ]  # fmt: skip
    assert offer("s3://photos/a-*.tar")[1] == {"4": b"four"}
    assert offer("s3://photos/list.txt")[1] == {
        "in/dog/2": b"in/dog/2.jpg",
        "in/cat/1": b"in/cat/1.jpg",
    }
    caplog.clear()
    read(Origin("s3://photos/in/cat/1.jpg"))
    assert [r.args[0].split()[0] for r in caplog.records if r.name == "werkzeug"] == ["GET"]
    with pytest.raises(FileNotFoundError) as caught:
        read(Origin("s3://photos/gone.jpg"))
    assert caught.value.strerror == "No such file or directory"
