"""An HTTP server with byte ranges on loopback, which misbehaves on request; and free ports."""

import re
import socket
import threading
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# what happens to the next requests of tars, one word each; then all is well
FAULTS = {"500", "404", "403", "drop", "short", "flip", "slow", "whole"}


class Handler(BaseHTTPRequestHandler):
    """GET with `Range: bytes=a-b`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        path = server.folder / self.path.lstrip("/")
        fault = server.next_fault(self.path) if path.suffix == ".tar" else ""
        if fault in ("500", "404", "403") or not path.is_file():
            return self.answer(int(fault or 404), b"no")
        body, state = self.part_of(path.read_bytes(), fault)
        if fault == "slow":
            time.sleep(1)
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault == "short":
            body = body[: len(body) // 2]
        return self.answer(state, body, drop=fault == "drop")

    def part_of(self, content, fault):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or fault == "whole":
            return content, 200
        start, end = int(asked[1]), int(asked[2]) + 1
        self.server.ranges.append((self.path, start, end))
        return content[start:end], 206 if start < len(content) else 416

    def answer(self, state, body, *, drop=False):
        self.send_response(state)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if drop else body)
        self.close_connection = True

    def log_message(self, *_):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """`url`, the `ranges` of tars that were asked for, and `faults` to come."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.faults = folder, [], deque()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that has gone away is part of the play."""

    def next_fault(self, path):
        fault = self.faults.popleft() if self.faults else ""
        assert not fault or fault in FAULTS, (path, fault)
        return fault


@contextmanager
def serve(folder):
    """Serve a folder in a thread."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def reset_moto(host, port):
    """Forget all buckets: moto keeps them per process, not per server."""
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()


def free_port():
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
