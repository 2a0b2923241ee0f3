"""A small hub on loopback: files in the hub's layout, redirects and ranges as the real one gives them, and faults."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """files: path -> content. The next `drops` answers break off half-way; `ranges` off: every answer is the whole."""

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
            self.wfile.write(content)
            hub.sent.append((path, len(content)))

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
