"""Feeding and draining the pipes of sandboxed processes within a time and a size."""

import os
import selectors
import time
from collections.abc import Collection
from enum import StrEnum
from typing import IO, Final

_CHUNK: Final = 1 << 16


class Ending(StrEnum):
    """How an exchange ended: by itself, at the time limit, at the output limit, or because somebody wanted it to."""

    DONE = "done"
    TIMEOUT = "timeout"
    OVERFLOW = "overflow"
    CANCELLED = "cancelled"


class Exchange:
    """Writes to some pipes and reads from others at the same time.

    Args:
        deadline: When to stop, of the monotonic clock, seconds.
        max_bytes: How much to read from all pipes together.
        cancel: A descriptor that becomes readable when to stop; None: nobody will.
    """

    def __init__(self, deadline: float, max_bytes: int, cancel: int | None = None) -> None:
        self._deadline = deadline
        self._left = max_bytes
        self._cancel = cancel
        self._sending: dict[IO[bytes], memoryview] = {}
        self._received: dict[IO[bytes], bytearray] = {}

    def send(self, pipe: IO[bytes], content: bytes) -> None:
        """Adds something to write; the pipe is closed behind it."""
        os.set_blocking(pipe.fileno(), False)
        self._sending[pipe] = memoryview(content)

    def receive(self, pipe: IO[bytes]) -> bytearray:
        """Adds a pipe to read to its end; what comes is in the returned array."""
        self._received[pipe] = bytearray()
        return self._received[pipe]

    def go_on(self, until: Collection[IO[bytes]] | None = None) -> Ending:
        """Writes and reads until these pipes are at their ends; None: all that are read (or written, if none is).

        Leaves every pipe that came to its end closed.
        """
        with selectors.DefaultSelector() as selector:
            for pipe in self._sending:
                selector.register(pipe, selectors.EVENT_WRITE, pipe)
            for pipe in self._received:
                selector.register(pipe, selectors.EVENT_READ, pipe)
            if self._cancel is not None:
                selector.register(self._cancel, selectors.EVENT_READ)
            awaited = set(until if until is not None else self._received or self._sending)
            while awaited:
                ending = self._step(selector, awaited)
                if ending is not None:
                    return ending
        return Ending.DONE

    def _step(self, selector: selectors.BaseSelector, awaited: set[IO[bytes]]) -> Ending | None:
        left_s = self._deadline - time.monotonic()
        ready = selector.select(left_s) if left_s > 0 else []
        if not ready and time.monotonic() >= self._deadline:
            return Ending.TIMEOUT
        for key, _ in ready:
            if key.fileobj == self._cancel:
                return Ending.CANCELLED
            pipe: IO[bytes] = key.data
            if self._is_at_end(pipe):
                selector.unregister(pipe)
                awaited.discard(pipe)
                pipe.close()
        return Ending.OVERFLOW if self._left < 0 else None

    def _is_at_end(self, pipe: IO[bytes]) -> bool:
        if pipe in self._sending:
            return self._is_sent(pipe)
        content = os.read(pipe.fileno(), _CHUNK)
        self._received[pipe] += content
        self._left -= len(content)
        if not content:
            del self._received[pipe]
        return not content

    def _is_sent(self, pipe: IO[bytes]) -> bool:
        try:
            written = os.write(pipe.fileno(), self._sending[pipe][:_CHUNK])
        except BlockingIOError:
            return False
        except BrokenPipeError:  # it reads no more of its input, which is its own affair
            written = len(self._sending[pipe])
        self._sending[pipe] = self._sending[pipe][written:]
        if self._sending[pipe]:
            return False
        del self._sending[pipe]
        return True
