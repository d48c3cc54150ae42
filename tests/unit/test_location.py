"""Places: what a path or a URI names, and objects that are whole or absent."""

from __future__ import annotations

import gzip
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from still_ray.formats.problems import read_problems
from still_ray.formats.prompt import load_template
from still_ray.location import ObjectPath, is_object, location
from still_ray.types import InputError, RunError
from tests.s3_server import S3Server


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> ObjectPath:
    return s3.place(f"location/{request.node.name}")


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_path_is_a_path_and_a_uri_is_read_back_from_its_text() -> None:
    assert location("runs/a") == Path("runs/a")
    assert location(Path("runs/a")) == Path("runs/a")
    assert location("file:///data/a%20b") == Path("/data/a b")
    text = "s3://bucket/runs//a/?endpoint_override=http://127.0.0.1:9000"
    place = location(text)
    assert isinstance(place, ObjectPath)
    child = place / "rounds" / "001-sft"
    assert str(child) == "s3://bucket/runs/a/rounds/001-sft?endpoint_override=http://127.0.0.1:9000"
    assert location(str(child)) == child
    assert (child.name, child.parent.parent, child.key) == ("001-sft", place, "bucket/runs/a/rounds/001-sft")
    assert (child.with_name("eval.parquet").stem, child.with_name("eval.parquet").suffix) == ("eval", ".parquet")
    assert location("gs://bucket") == ObjectPath("gs://bucket")
    public = location("gs://anonymous@bucket/a")
    assert isinstance(public, ObjectPath) and public.key == "bucket/a"
    assert pickle.loads(pickle.dumps(child)) == child


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/a", "unknown kind of storage ftp://"),
        ("s3:/bucket/a", "a URI begins with s3://"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("s3://bucket/a?colour=red", "unknown option colour; known are endpoint_override, region"),
        ("s3://bucket/a#b", '"#"'),
        ("s3://me:hush@bucket/a", "use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://hush@bucket/a", "credentials do not belong into a URI"),
        ("s3://me:hush/hush@bucket/a", "credentials do not belong into a URI"),
        ("s3://bucket/a?endpoint_override=http://me:hush@host", "credentials do not belong into a URI"),
        ("file://host/a", "names a host; give file:///host/a or a plain path"),
        ("s3://bucket/a?secret_key=hush", "credentials do not belong into a URI"),
        ("gs://hush@bucket/a", "credentials do not belong into a URI"),
        ("abfs://box:hush@account/a", "credentials do not belong into a URI"),
        ("abfs://box@account/a?sas=hush", "credentials do not belong into a URI"),
    ],
)
def test_a_place_that_cannot_be_is_refused_without_its_secrets(text: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        location(text)
    assert said in str(refusal.value)
    assert "hush" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not is_object(text)


def test_an_object_is_no_file_of_this_machine() -> None:
    with pytest.raises(TypeError, match="s3://bucket/a: an object is no file"):
        Path(ObjectPath("s3://bucket/a"))


# -- objects ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_there_and_what_is_not_is_said(bucket: ObjectPath, tmp_path: Path) -> None:
    (bucket / "a.txt").write_bytes("½".encode())
    (bucket / "below/b.txt").write_bytes(b"")
    (tmp_path / "c").write_bytes(bytes(range(256)) * 100)
    (bucket / "c.bin").copy_from(tmp_path / "c")
    assert (bucket / "a.txt").read_text() == "½"
    assert bucket.files() == {"a.txt": 2, "below/b.txt": 0, "c.bin": 25_600}
    assert list(bucket.glob("*.txt")) == [bucket / "a.txt"]
    (bucket / "c.bin").copy_to(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == (tmp_path / "c").read_bytes()
    places = (bucket / "a.txt", bucket / "below", bucket / "nothing")
    assert [place.exists() for place in places] == [True, True, False]
    assert [(place.is_file(), place.is_dir()) for place in places] == [(True, False), (False, True), (False, False)]
    for missing in ((bucket / "x").read_bytes, (bucket / "x").unlink, (bucket / "x").size):
        with pytest.raises(FileNotFoundError, match=f"{bucket.uri}/x"):
            missing()


def test_everything_below_goes_and_nothing_beside(bucket: ObjectPath) -> None:
    for name in ("old/1", "old/2/3", "older/1"):
        (bucket / name).write_bytes(b"x")
    (bucket / "old").remove_all()
    (bucket / "nowhere").remove_all()
    assert bucket.files() == {"older/1": 1}


def test_a_listing_has_another_digest_once_an_object_was_written_again(bucket: ObjectPath) -> None:
    (bucket / "a").write_bytes(b"1")
    before = bucket.listing_digest()
    assert bucket.listing_digest() == before
    time.sleep(1.1)  # S3 tells times in seconds
    (bucket / "a").write_bytes(b"2")
    assert bucket.listing_digest() != before


def test_a_write_that_fails_half_way_leaves_no_object(bucket: ObjectPath) -> None:
    def torn() -> Iterator[bytes]:
        yield b"x" * 20_000_000  # more than a part
        raise OSError("the disk is gone")

    with pytest.raises(RunError, match="cannot be written: the disk is gone"):
        (bucket / "a")._put(torn())
    assert not (bucket / "a").exists()


def test_an_interrupt_in_the_middle_of_a_write_leaves_a_whole_object(bucket: ObjectPath) -> None:
    def slow() -> Iterator[bytes]:
        yield b"x" * 10
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        yield b"y" * 10

    with pytest.raises(KeyboardInterrupt):
        (bucket / "a")._put(slow())
    assert (bucket / "a").read_bytes() == b"x" * 10 + b"y" * 10


def test_a_writer_killed_in_the_middle_leaves_the_old_object(bucket: ObjectPath, s3: S3Server) -> None:
    (bucket / "a").write_bytes(b"old")
    program = """
import os, signal, sys
from still_ray.location import location

def torn():
    yield b"x" * 20_000_000
    os.kill(os.getpid(), signal.SIGKILL)

location(sys.argv[1])._put(torn())
"""
    process = subprocess.run([sys.executable, "-c", program, str(bucket / "a")], check=False)
    assert process.returncode == -9
    assert (bucket / "a").read_bytes() == b"old"


def test_the_environment_names_a_server_as_well_as_the_uri_does(s3: S3Server, bucket: ObjectPath) -> None:
    (bucket / "a").write_bytes(b"here")
    program = "import sys; from still_ray.location import location; print(location(sys.argv[1]).read_text())"
    command = [sys.executable, "-c", program, (bucket / "a").uri]
    printed = subprocess.run(command, env=s3.environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "here\n"


# -- stores that do not answer ----------------------------------------------------------------------------------------


class Denying(BaseHTTPRequestHandler):
    """A store that refuses everybody."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def denying() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Denying) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_run_directory_that_cannot_be_written_to_is_refused_in_one_line(s3: S3Server, denying: str) -> None:
    cases = [
        (f"s3://nobodys/run?endpoint_override={s3.endpoint}", "there is no such bucket"),
        (f"s3://runs/run?endpoint_override={denying}", "access is denied"),
        ("s3://runs/run?endpoint_override=http://127.0.0.1:9", "connect to"),
    ]
    for uri, said in cases:
        place = location(uri)
        assert isinstance(place, ObjectPath)
        started = time.monotonic()
        with pytest.raises(InputError) as refusal:
            place.require_writable("--run-dir")
        assert time.monotonic() - started < 10
        text = str(refusal.value)
        assert text.startswith(f"--run-dir {uri}: cannot be written to: ") and said in text
        assert "AWS_ACCESS_KEY_ID" in text and "endpoint_override=" in text and "\n" not in text


# -- data -------------------------------------------------------------------------------------------------------------


def test_data_files_and_templates_may_be_objects(bucket: ObjectPath, tmp_path: Path) -> None:
    (bucket / "problems.jsonl").write_bytes(
        b'{"problem": "1+1?", "answer": "2"}\n\n{"problem": "1+2?", "answer": "3"}\n'
    )
    assert [problem.answer for problem in read_problems(str(bucket / "problems.jsonl"))] == ["2", "3"]
    (bucket / "problems.json").write_bytes(b'\xef\xbb\xbf[{"problem": "1+1?", "answer": "2"}]')
    (bucket / "problems.csv.gz").write_bytes(gzip.compress(b"problem,answer\n1+1?,2\n"))
    for name in ("problems.json", "problems.csv.gz"):
        assert [problem.answer for problem in read_problems(str(bucket / name))] == ["2"]
    (bucket / "broken.jsonl").write_bytes(b'{"problem": "1+1?"}\n')
    with pytest.raises(InputError, match=r"broken.jsonl.*, row 1: missing key"):
        list(read_problems(str(bucket / "broken.jsonl")))
    with pytest.raises(InputError, match="no such file"):
        list(read_problems(str(bucket / "absent.jsonl")))
    (bucket / "template.txt").write_bytes(b"Solve: {question}\n")
    assert load_template(str(bucket / "template.txt")).render("1+1?") == "Solve: 1+1?"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_template(str(bucket / "none.txt"))
