"""Servers on loopback that tests can take away: a hub of data sets and an S3 store."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer


@dataclass
class Hub:
    """Files in the hub's layout, redirects and ranges as the real one gives them, and faults.

    files: path -> content. The next `drops` answers break off half-way; `ranges` off: every answer is the whole.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    drops: int = 0
    sent: list[tuple[str, int]] = field(default_factory=list)  # path and bytes of each answer
    endpoint: str = ""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.removeprefix("/storage")
            if path not in hub.files:
                self.send_error(404)
            elif path == self.path:  # the hub answers with where the content lies
                self.send_response(302)
                self.send_header("Location", f"{hub.endpoint}/storage{path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_content(path)

        def send_content(self, path: str) -> None:
            content, status = hub.files[path], 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if hub.ranges and asked:
                content, status = content[int(asked[1]) : int(asked[2]) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if hub.drops:
                hub.drops -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            hub.sent.append((path, len(content)))  # before the client has it, and may look here
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


BUCKET = "tinyscale-test"


class S3Server:
    """moto's server: real requests over real connections, objects in memory."""

    def __init__(self) -> None:
        self.port = 0  # any free one, the same from then on
        self.start()

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    def stop(self) -> None:
        """Refuse connections from now on; the objects stay."""
        self.server.stop()

    def create_bucket(self) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()

    def uri(self, path: str, bucket: str = BUCKET) -> str:
        """Where a folder of the bucket is, as `--results` takes it."""
        endpoint = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return f"s3://testing:testing@{bucket}/{path}?{endpoint}"
