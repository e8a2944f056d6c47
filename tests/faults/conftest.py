"""What kills and pairs share: the inputs, one undisturbed run of each command, a server to download from."""

import hashlib
import io
import json
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fault_commands import COMMANDS, Run, begin, make_study, state


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def single(study, surroundings, tmp_path_factory):
    """What one undisturbed run of a command leaves, by the command's name; `.changes` and `.seconds`: of that run."""
    states = {}

    def single(name):
        if name not in states:
            folder = begin(COMMANDS[name], study, tmp_path_factory.mktemp("single") / "run")
            run, began = Run(COMMANDS[name], folder, environment=surroundings), time.monotonic()
            assert run.end() == 0, run.output
            single.seconds[name] = time.monotonic() - began
            states[name] = state(folder)
            single.changes[name] = run.changes
        return states[name]

    single.changes, single.seconds = {}, {}
    return single


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("eps1/resnet18.pt", bytes(range(256)) * 400)
        archive.writestr("eps1/vgg16_bn.pth", bytes(range(255, -1, -1)) * 400)
    return buffer.getvalue()


PUBLISHED = {"cifar10_eps1.zip": _archive(), "imagenet100_eps3_vgg16_bn.ckpt": b"weights" * 30_000}


class Zenodo(BaseHTTPRequestHandler):
    """One record of Zenodo, two files."""

    def log_message(self, *args):
        """Quiet."""

    def do_GET(self):
        name = self.path.removeprefix("/files/")
        if name in PUBLISHED:
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            data = PUBLISHED[name][start:]
            self.send_response(416 if not data else 206 if start else 200)
        else:
            entries = [
                {"key": name, "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
                 "links": {"self": f"http://127.0.0.1:{self.server.server_address[1]}/files/{name}"}}
                for name, data in PUBLISHED.items()
            ]  # fmt: skip
            data = json.dumps({"metadata": {"title": "Checkpoints of models"}, "files": entries}).encode()
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for first in range(0, len(data), 20_000):
            self.wfile.write(data[first : first + 20_000])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that was killed is no error here."""


@pytest.fixture(scope="session")
def surroundings():
    """Environment of every command: where the published files are."""
    server = _Server(("127.0.0.1", 0), Zenodo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxies = {name: "" for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")} | {"no_proxy": "*"}
    yield {"ZENODO_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", **proxies}
    server.shutdown()
    server.server_close()
    thread.join()
