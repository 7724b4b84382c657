"""A bucket of our own: moto's S3 in this process, on a free port, reached by the usual AWS variables."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer


class BucketServer:
    """Buckets by name; `stop` it and it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Werkzeug writes a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            # What a developer's machine says of its own buckets.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            monkeypatch.setenv(name, value)

    def new_bucket(self) -> str:
        """Its URL."""
        from s3fs import S3FileSystem

        name = f"frames-{uuid.uuid4().hex[:12]}"
        S3FileSystem(skip_instance_cache=True).call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def bucket_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    server = BucketServer(monkeypatch)
    try:
        yield server
    finally:
        server.stop()
