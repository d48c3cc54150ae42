"""An S3 server for tests: moto in a process of its own, on a free port, with credentials that open nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from still_ray.location import ObjectPath

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key-id", "AWS_SECRET_ACCESS_KEY": "test-secret-of-nobody"}
BUCKET = "runs"

_PROGRAM = """
import logging, sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test ends, however it ends
"""


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket.

    Attributes:
        endpoint: Its address.
        environment: What a process needs to reach it without options in the URI.
    """

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the server in it."""
        return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def place(self, prefix: str) -> ObjectPath:
        """A place in the bucket."""
        return ObjectPath(f"s3://{BUCKET}/{prefix}", f"endpoint_override={self.endpoint}")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Starts a server and makes the bucket; this process has the credentials until the end."""
    from pyarrow.fs import S3FileSystem

    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir(BUCKET)
            yield S3Server(endpoint)
        finally:
            process.stdin.close()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
