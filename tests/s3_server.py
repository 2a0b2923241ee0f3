"""An S3 server on a loopback address, which tests can take away and bring back with what it holds."""

from __future__ import annotations

import urllib.request

from moto.server import ThreadedMotoServer

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
