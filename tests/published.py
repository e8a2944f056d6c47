"""A server on this machine that publishes files as Zenodo and Hugging Face do, cuts connections and counts."""

import contextlib
import hashlib
import io
import json
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HUB = "madrylab/robust-imagenet-models"
COMMIT = "0" * 40
Records = Mapping[str, tuple[str, Mapping[str, bytes]]]  # number -> title, files


def zip_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Service(ThreadingHTTPServer):
    """Both services in one.

    Attributes:
        cuts: file -> how many more answers are cut in the middle.
        ranges: file and Range header of each transfer.
        sent: file -> bytes.
        corrupt: files of which zeros are sent.
        no_ranges: whether whole files are sent whatever was asked for.
    """

    daemon_threads = True

    def __init__(self, zenodo: Records, hub: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.zenodo, self.hub = zenodo, hub
        self.cuts: Counter = Counter()
        self.ranges: list[tuple[str, str | None]] = []
        self.sent: Counter = Counter()
        self.corrupt: set[str] = set()
        self.no_ranges = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the download finds it."""
        proxies = {name: "" for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")} | {"no_proxy": "*"}
        return {"ZENODO_ENDPOINT": self.url, "HF_ENDPOINT": self.url, **proxies}


@contextlib.contextmanager
def serve(zenodo: Records, hub: Mapping[str, bytes] | None = None) -> Iterator[Service]:
    server = Service(zenodo, hub or {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path, service = self.path.partition("?")[0], self.server
        if path == f"/api/models/{HUB}":
            siblings = []
            for name, data in service.hub.items():
                large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
                siblings.append({"rfilename": name} | (large if name != "README.md" else {}))
            self.answer_json({"id": HUB, "sha": COMMIT, "siblings": siblings})
        elif (match := re.fullmatch(r"/api/records/(\w+)", path)) and match[1] in service.zenodo:
            title, files = service.zenodo[match[1]]
            entries = [
                {
                    "key": name,
                    "size": len(data),
                    "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
                    "links": {"self": f"{service.url}{path}/files/{name}/content"},
                }
                for name, data in files.items()
            ]
            self.answer_json({"id": match[1], "metadata": {"title": title}, "files": entries})
        elif match := re.fullmatch(r"/api/records/(\w+)/files/(.+)/content", path):
            self.answer_file(match[2], service.zenodo[match[1]][1][match[2]])
        elif match := re.fullmatch(rf"/{HUB}/resolve/{COMMIT}/(.+)", path):
            self.answer_file(match[1], service.hub[match[1]])
        else:
            self.send_error(404)

    def answer_json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_file(self, name: str, data: bytes) -> None:
        service, asked = self.server, self.headers.get("Range")
        service.ranges.append((name, asked))
        if name in service.corrupt:
            data = bytes(len(data))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and not service.no_ranges else 0
        rest = data[start:]
        if not rest:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if service.cuts[name] > 0:
            service.cuts[name] -= 1
            rest = rest[: len(rest) // 2]
            self.close_connection = True
        for first in range(0, len(rest), 20_000):  # in pieces, so that a client can be killed between them
            self.wfile.write(rest[first : first + 20_000])
        service.sent[name] += len(rest)
