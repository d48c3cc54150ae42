"""Places of files: folders of this machine or shared by all, and objects in S3, GCS or what else pyarrow reaches.

A local place is a plain `pathlib.Path`. An object's place has the same methods, as far as they are used here, so that
most code does not ask which of the two it holds.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from still_ray.types import InputError, RunError

S3: Final = "s3"
GCS: Final = ("gs", "gcs")
ANONYMOUS: Final = "anonymous@"
"""Before a bucket of GCS: without credentials, for public buckets."""
HADOOP: Final = ("hdfs", "viewfs")
SCHEMES: Final = (S3, *GCS, "abfs", "abfss", *HADOOP)
"""What `pyarrow.fs.FileSystem.from_uri` reads, `file` left out: such a place is a path."""

S3_OPTIONS: Final = ("endpoint_override", "region", "scheme", "tls_ca_file_path")
S3_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 30.0
"""Of one request without a byte; pyarrow's own is 3 s, too short for a busy store."""
ATTEMPTS: Final = 6
"""Of one request; with the pauses in between, about half a minute of refusals. Source: ours."""
CHUNK_BYTES: Final = 32 * 2**20
"""Written at a time: a part of a multipart upload, of which S3 takes 10,000."""

_ADDRESS: Final = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_ONE_SLASH: Final = re.compile(rf"^({'|'.join((*SCHEMES, 'file'))}):/?(?!/)")
_CODE: Final = re.compile(r"AWS Error (\w+)(?: during \w+ operation)?:?\s*(.*)")
_SECRET: Final = re.compile(r"key|secret|token|password|sig|sas", re.IGNORECASE)
_MEANINGS: Final = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "RESOURCE_NOT_FOUND": "there is no such bucket",
    "ACCESS_DENIED": "access is denied",
    "INVALID_ACCESS_KEY_ID": "the store does not know the access key",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong",
    "EXPIRED_TOKEN": "the credentials have expired",
}
_GCS_LASTING: Final = ("PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "INVALID_ARGUMENT")

Result = TypeVar("Result")


@dataclass(frozen=True)
class ObjectPath:
    """The place of an object, or of all objects below it; "folders" exist while something is in them.

    Attributes:
        uri: Scheme, bucket and key, without a slash at the end; holds no credentials.
        query: Options of the store, e.g. "endpoint_override=http://127.0.0.1:9000"; "" for none.
    """

    uri: str
    query: str = ""

    def __str__(self) -> str:
        """The URI that `location` reads back."""
        return f"{self.uri}?{self.query}" if self.query else self.uri

    def __fspath__(self) -> str:
        """Refused: nothing of the operating system opens an object."""
        raise TypeError(f"{self.uri}: an object is no file of this machine")

    def __lt__(self, other: ObjectPath) -> bool:
        """By key."""
        return self.uri < other.uri

    def __truediv__(self, name: str) -> ObjectPath:
        """A place below."""
        return replace(self, uri=f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.uri.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """Last suffix of the name, with its dot; "" for none."""
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """The place above."""
        return replace(self, uri=self.uri.rpartition("/")[0])

    @property
    def key(self) -> str:
        """The path within `filesystem`: bucket and key."""
        if _scheme(self.uri) in (S3, *GCS):
            return self.uri.partition("://")[2].removeprefix(ANONYMOUS)
        rest = self.uri.removeprefix(_root(self.uri))
        return f"{self._store[1]}{rest}" if _scheme(self.uri) in HADOOP else f"{self._store[1]}{rest}".lstrip("/")

    @property
    def filesystem(self) -> Any:
        """The file system of pyarrow, one for each store and process; its requests time out."""
        return self._store[0]

    @property
    def _store(self) -> tuple[Any, str]:
        return _opened(_root(self.uri), self.query, CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, ATTEMPTS)

    def with_name(self, name: str) -> ObjectPath:
        """Another place beside."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is an object, or something below."""
        return bool(self._info().type.value)

    def is_file(self) -> bool:
        """Whether there is an object."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether something is below."""
        return self.exists() and not self.is_file()

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: There is none.
        """
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return int(info.size)

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: a store has no folders."""

    def files(self) -> dict[str, int]:
        """Every object below, in order: its key from here on, and its bytes."""
        return self._files(recursive=True)

    def listing_digest(self) -> str:
        """16 letters that change when any object below is written again."""
        lines = [f"{info.path}\n{info.size}\n{info.mtime_ns}" for info in self._listed(recursive=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """The objects right here whose name matches."""
        return (self / name for name in self._files(recursive=False) if fnmatchcase(name, pattern))

    def open(self, mode: str = "rb", *, start: int = 0) -> BinaryIO:
        """Reads the object, from a byte on.

        Raises:
            FileNotFoundError: There is none.
        """
        assert mode == "rb", "objects are written as a whole"
        if start:
            stream = self.random_access()
            stream.seek(start)
        else:
            stream = self._asked("read", lambda: self.filesystem.open_input_stream(self.key))
        return cast(BinaryIO, io.BufferedReader(stream, buffer_size=2**20))

    def random_access(self) -> Any:
        """The object as pyarrow's readers want it.

        Raises:
            FileNotFoundError: There is none.
        """
        return self._asked("read", lambda: self.filesystem.open_input_file(self.key))

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: There is none.
        """
        return bytes(self._asked("read", lambda: self.filesystem.open_input_stream(self.key).read()))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Puts the object: whole or, if that fails, not at all."""
        self._put([content])

    def copy_from(self, file: Path) -> None:
        """Puts a local file here: whole or, if that fails, not at all."""
        with file.open("rb") as content:
            self._put(iter(lambda: content.read(CHUNK_BYTES), b""))

    def copy_to(self, file: Path) -> None:
        """Fetches the object into a local file.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.open() as content, file.open("wb") as target:
            self._asked("read", lambda: _copy(content, target))

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the object.

        Raises:
            FileNotFoundError: There is none, and that is not fine.
        """
        try:
            self._asked("removed", lambda: self.filesystem.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Removes everything below."""
        if not self._listed(recursive=True):  # pyarrow would leave a mark where nothing was
            return
        try:
            self._asked("removed", lambda: self.filesystem.delete_dir_contents(self.key, missing_dir_ok=True))
        except FileNotFoundError:
            return

    def require_writable(self, option: str = "") -> None:
        """Puts and removes an object here with short time limits.

        Args:
            option: The option that named this place, for the message.

        Raises:
            InputError: The store cannot be reached or refuses.
        """

        def put_and_remove() -> None:
            probe = f"{self.key}/.write-{os.getpid()}-{threading.get_ident()}"
            short = _opened(_root(self.uri), self.query, CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S, 2)[0]
            with short.open_output_stream(probe) as stream:
                stream.write(b"x")
            short.delete_file(probe)

        try:
            _uninterrupted(put_and_remove)
        except (OSError, ValueError) as error:
            where = f"{option} {self}".strip()
            raise InputError(f"{where}: cannot be written to: {reason_of(error)}; {self._advice}") from None

    @property
    def _advice(self) -> str:
        if _scheme(self.uri) == S3:
            return (
                "give s3://BUCKET/PREFIX of a bucket that exists, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "a profile or a role, and AWS_ENDPOINT_URL or ?endpoint_override=http://HOST:PORT if it is not AWS"
            )
        if _scheme(self.uri) in GCS:
            return "give gs://BUCKET/PREFIX of a bucket that exists, with application default credentials"
        return "give a place that exists, with the credentials that its store wants"

    def _files(self, *, recursive: bool) -> dict[str, int]:
        prefix = len(self.key) + 1
        return {info.path[prefix:]: int(info.size) for info in self._listed(recursive=recursive)}

    def _listed(self, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        def listed() -> Any:
            selector = FileSelector(self.key, recursive=recursive, allow_not_found=True)
            return self.filesystem.get_file_info(selector)

        found = self._asked("listed", listed)
        return sorted((info for info in found if info.is_file), key=lambda info: info.path)

    def _info(self) -> Any:
        return self._asked("looked up", lambda: self.filesystem.get_file_info(self.key))

    def _put(self, chunks: Iterable[bytes]) -> None:
        """A stream that is closed makes an object of what it got, so one that failed has to be removed."""

        def put() -> None:
            stream = self.filesystem.open_output_stream(self.key)
            try:
                for chunk in chunks:
                    stream.write(chunk)
            except BaseException:
                if _succeeded(stream.close):  # else no object was made, and what was there before stays
                    _succeeded(lambda: self.filesystem.delete_file(self.key))
                raise
            stream.close()

        self._asked("written", lambda: _uninterrupted(put))

    def _asked(self, what: str, work: Callable[[], Result]) -> Result:
        """Does something with the store; what fails is said in one line.

        Raises:
            FileNotFoundError: There is no such object.
            RunError: Anything else.
        """
        try:
            return work()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self}: cannot be {what}: {reason_of(error)}") from error


Location = Path | ObjectPath


def location(place: str | Path | ObjectPath) -> Location:
    """The place that a path or a URI names; a relative path stays relative.

    Raises:
        InputError: The URI is of a kind that is not known, is not complete, or holds credentials.
    """
    if isinstance(place, ObjectPath):
        return place
    if not isinstance(place, str) or not is_uri(place):
        if wrong := _ONE_SLASH.match(str(place)):
            raise InputError(f"{place}: is neither a path nor a URI; a URI begins with {wrong[1]}://")
        return Path(place)
    parts = urlsplit(place)
    if parts.scheme.lower() == "file":
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{place}: names a host; give file:///{parts.netloc}{parts.path} or a plain path")
        return Path(unquote(parts.path))
    if parts.scheme not in SCHEMES:
        raise InputError(f"{_shown(place)}: unknown kind of storage {parts.scheme}://; give a folder, s3:// or gs://")
    _check_no_credentials(place)
    if not parts.netloc:
        raise InputError(f"{place}: names no bucket; give {parts.scheme}://BUCKET/PREFIX")
    if parts.fragment or parts.scheme == S3:
        _check_s3_options(place, dict(parse_qsl(parts.query, keep_blank_values=True)), parts.fragment)
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    return ObjectPath(f"{parts.scheme}://{parts.netloc}{path}", parts.query)


def is_uri(place: str) -> bool:
    """Whether a text is a URI rather than a path."""
    return _ADDRESS.match(place) is not None


def is_object(text: str) -> bool:
    """Whether a text names a place in an object store that is in order, and so holds no credentials."""
    try:
        return is_uri(text) and isinstance(location(text), ObjectPath)
    except InputError:
        return False


def reason_of(error: BaseException) -> str:
    """What a store's error says, in one line without the request's number."""
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\(Request ID[^)]*\)", "", text)
    if code := _CODE.search(text):
        meaning = _MEANINGS.get(code[1])
        return f"{meaning} ({code[1]})" if meaning else code[2] or code[1]
    if text.startswith("google::cloud::Status"):
        text = text.rpartition("with a last message of ")[2].partition(". ")[0]
    return text or type(error).__name__


def is_lasting(error: RunError) -> bool:
    """Whether what a store refused would be refused again: it is there, and something is wrong with what it was asked.

    Args:
        error: What a method of `ObjectPath` raised.
    """
    cause = error.__cause__
    code = _CODE.search(" ".join(str(cause).split()))
    if code is not None:
        return code[1] in _MEANINGS
    return isinstance(cause, ValueError) or any(name in str(cause) for name in _GCS_LASTING)


def _shown(place: str) -> str:
    """A URI as far as it can hold no secret."""
    scheme, _, rest = place.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"  # a secret may hold any character but "@"


def _check_no_credentials(place: str) -> None:
    parts = urlsplit(place)
    bare = place.partition("://")[2].partition("?")[0].removeprefix(ANONYMOUS if parts.scheme in GCS else "")
    in_address = parts.password is not None or (
        parts.scheme in (S3, *GCS) and ("@" in bare or ":" in bare.partition("/")[0])  # a secret may hold a "/"
    )
    options = parse_qsl(parts.query, keep_blank_values=True)
    if in_address or any(_SECRET.search(name) or "@" in value for name, value in options):
        variables = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if parts.scheme == S3 else "the environment"
        raise InputError(f"{_shown(place)}: credentials do not belong into a URI, which is shown; use {variables}")


def _check_s3_options(place: str, options: Mapping[str, str], fragment: str) -> None:
    unknown = [name for name in options if name not in S3_OPTIONS]
    if unknown or fragment:
        named = f"unknown option {unknown[0]}" if unknown else 'a "#" does not belong into it'
        raise InputError(f"{_shown(place)}: {named}; known are {', '.join(S3_OPTIONS)}")


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


def _root(uri: str) -> str:
    """Scheme and bucket."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


@cache
def _opened(
    root: str, query: str, connect_timeout_s: float, request_timeout_s: float, attempts: int
) -> tuple[Any, str]:
    """A store's file system, and what goes before its keys; asks S3 for the region of a bucket that nobody named."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    if _scheme(root) != S3:
        options = [query] if query else []
        if _scheme(root) in GCS and "retry_limit_seconds" not in query:
            options.append(f"retry_limit_seconds={request_timeout_s:.0f}")
        filesystem, prefix = FileSystem.from_uri(f"{root}?{'&'.join(options)}" if options else root)
        return filesystem, prefix.rstrip("/")
    given = dict(parse_qsl(query))
    given |= {"endpoint_override": endpoint} if (endpoint := _s3_endpoint(given)) else {}
    given |= {"region": region} if (region := _s3_region(root, given)) else {}
    filesystem = S3FileSystem(
        **given,
        allow_delayed_open=True,  # a small object takes one request
        background_writes=False,  # else a whole file waits in memory for a slow store
        connect_timeout=connect_timeout_s,
        request_timeout=request_timeout_s,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts),
    )
    return filesystem, ""


def _s3_endpoint(options: Mapping[str, str]) -> str | None:
    """Where the store is, if it is not AWS; pyarrow's constructor does not read these variables."""
    return options.get("endpoint_override") or _first_variable(S3_ENDPOINT_VARIABLES)


def _s3_region(root: str, options: Mapping[str, str]) -> str | None:
    """The region named, else, on AWS, the bucket's; None leaves it to pyarrow's default."""
    from pyarrow.fs import resolve_s3_region

    named = options.get("region") or _first_variable(REGION_VARIABLES)
    if named or _s3_endpoint(options):
        return named
    return str(resolve_s3_region(urlsplit(root).netloc))


def _first_variable(names: Iterable[str]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _uninterrupted(work: Callable[[], Result]) -> Result:
    """Runs in another thread: an interrupt, which only the main thread sees, must not close half an object."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _succeeded(work: Callable[[], Any]) -> bool:
    """Whether it went well; for cleaning up after a failure that is reported already."""
    try:
        work()
    except OSError:
        return False
    return True


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
