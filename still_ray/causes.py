"""What is wrong, in one line, and the key of the recipe that mends it, from the exceptions of every library.

A library says what is wrong somewhere in a text that begins with a traceback or a table and ends with advice for its
own users and the address of its documentation. What the table below knows is said in our own words; of everything
else, the exception's own sentence. What Ray wraps around it is taken off in `still_ray.actors.pool.causes`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.types import StillRayError

MEMORY: Final = {
    "replica": "lower sampler.max_num_seqs, model.max_length, sampler.num_replicas or (CPU) sampler.kv_cache_gib",
    "verifier": "lower verifier.num_workers or verifier.processes_per_worker",
    "trainer": "lower {section}.{size_key}, {section}.max_length or trainer.num_workers (ranks of one "
    "machine share its memory), or set trainer.offload (GPU)",
    "": "lower sampler.num_replicas, trainer.num_workers or model.max_length",
}
"""What takes less memory, by where it ran out."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something failed, as far as the keys that mend it depend on that.

    Attributes:
        kind: "replica", "verifier", "trainer", or "" where it is none of these.
        section: The section of the recipe that the trainer's stage follows, e.g. "imitate" or "dpo".
        size_key: That of its keys which says how much a forward pass holds.
    """

    kind: str = ""
    section: str = "imitate"
    size_key: str = "per_device_batch_size"

    @property
    def less_memory(self) -> str:
        """What takes less memory there."""
        return MEMORY.get(self.kind, MEMORY[""]).format(section=self.section, size_key=self.size_key)


ANYWHERE: Final = Place()


@dataclass(frozen=True, kw_only=True)
class KnownCause:
    r"""What a library says, and what it means for a recipe.

    Attributes:
        said: Pattern of the library's text, on one line.
        means: What is wrong and what to do, with the pattern's groups as `\1` or `\g<name>`, and `{memory}` for what
            takes less memory at the place.
        passes: Whether another try may not meet it: others were behind it.
    """

    said: str
    means: str
    passes: bool = False


_CACHE_KEYS: Final = "sampler.kv_cache_gib (CPU) or sampler.gpu_memory_utilization (GPU)"
KNOWN: Final = (
    # vLLM, in the order in which a start meets them
    KnownCause(
        said=r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \((\w+)=(\d+)",
        means=r"model.max_length (\1) is more than the model's \3 positions (\2 of its config.json): lower "
        "model.max_length",
    ),
    KnownCause(
        said=r"max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is needed.*?KV cache memory \(([\d.]+) GiB\)"
        r"(?:.*?maximum model length is (?P<fits>\d+))?",
        means=r"one sequence of model.max_length (\1 tokens) needs \2 GiB of KV cache and there are \3 GiB, enough for "
        rf"\g<fits> tokens: lower model.max_length, or raise {_CACHE_KEYS}",
    ),
    KnownCause(
        said=r"No available memory for the cache blocks|not enough GPU memory available to serve even a single token",
        means="the weights leave no memory for the KV cache: raise sampler.gpu_memory_utilization, or spread the model "
        "over more devices by sampler.tensor_parallel_size; on a CPU, {memory}",
    ),
    KnownCause(
        said=r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\) on kv cache allocation is less than requested "
        r"memory for kv \(([\d.]+)",
        means=r"\1 of \2 GiB of memory are free and the KV cache wants \3 GiB: lower sampler.kv_cache_gib or "
        "sampler.num_replicas, or end what else takes memory",
        passes=True,
    ),
    KnownCause(
        said=r"(?:Free memory on device (\S+)|Available memory on node (\d+)) \(([\d.]+)/([\d.]+) GiB\) on startup is "
        r"less than",
        means=r"\3 of \4 GiB are free on device \1\2 when the engine starts: lower sampler.gpu_memory_utilization, or "
        "end what else takes its memory",
        passes=True,
    ),
    KnownCause(
        said=r"Total number of attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        means=r"the model's \1 attention heads cannot be divided by sampler.tensor_parallel_size (\2): give a divisor",
    ),
    KnownCause(
        said=r"Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your (.*?) GPU",
        means=r"a \1 cannot compute in bfloat16: set sampler.dtype to float32",
    ),
    KnownCause(
        said=r"Model architectures \[(.*?)\] are not supported",
        means=r"vLLM does not know the architecture \1: give another model.path",
    ),
    # memory
    KnownCause(
        said=r"CUDA out of memory\. Tried to allocate ([\d.]+ \w+)\. GPU (\d+) has a total capacity of ([\d.]+ \w+) of "
        r"which ([\d.]+ \w+) is free",
        means=r"GPU \2 has no memory left: \1 were wanted and \4 of \3 are free; {memory}",
        passes=True,
    ),
    KnownCause(said=r"CUDA out of memory", means="the GPU has no memory left; {memory}", passes=True),
    KnownCause(
        said=r"can't allocate memory: you tried to allocate (?P<bytes>\d+) bytes",
        means=r"the machine has no memory left: \g<bytes> bytes were wanted; {memory}",
        passes=True,
    ),
    # transformers, safetensors, the hub
    KnownCause(
        said=r"has model type `([^`]+)` but Transformers does not recognize this architecture",
        means=r"transformers does not know the model type \1: give another model.path",
    ),
    KnownCause(
        said=r"Unrecognized model in (\S+)\. Should have a `model_type`",
        means=r"\1 has no config.json with a model_type: model.path must be a HF model directory or a hub id",
    ),
    KnownCause(
        said=r"(?<!\S)(\S+) does not appear to have a file named (\S+?)[.,](?:\s|$)",
        means=r"\1 has no \2: model.path must be a whole HF model directory or a hub id",
    ),
    KnownCause(
        said=r"no file named ([\w.]*safetensors).*?found in (?:directory )?(\S+?)\.?(?:\s|$)",
        means=r"\2 has no \1: model.path must be a whole HF model directory or a hub id",
    ),
    KnownCause(
        said=r"Error while deserializing header: ([\w ]+)",
        means=r"a file of weights is no safetensors file (\1): it was cut off or is a git-lfs pointer; fetch the "
        "model of model.path again",
    ),
    KnownCause(
        said=r"contains custom code which must be executed",
        means="the model comes with Python code of its own: set model.trust_remote_code to true if you trust it",
    ),
    KnownCause(
        said=r"Cannot access gated repo for url (\S+?)\.?(?:\s|$)|You are trying to access a gated repo",
        means="the hub gives this model to those only who accepted its terms: do so there, and set HF_TOKEN",
    ),
    KnownCause(
        said=r"Repository Not Found for url|is not a local folder and is not a valid model identifier",
        means="the hub has no such model, or shows it to others only: correct model.path, or set HF_TOKEN for a "
        "private model",
    ),
    KnownCause(
        said=r"outgoing traffic has been disabled|Cannot find the requested files in the disk cache",
        means="the model is not on this machine, and HF_HUB_OFFLINE keeps it from the hub: give its folder as "
        "model.path, or unset the variable",
    ),
    KnownCause(
        said=r"We couldn't connect to '(https?://[^/']+)|An error happened while trying to locate the file on the Hub",
        means=r"the model is not on this machine and the hub cannot be reached: give its folder as model.path, or see "
        "to the connection",
        passes=True,
    ),
    # collectives
    KnownCause(
        said=r"gloo/transport/.*?(Connection (?:closed|reset) by peer|timed out|broken pipe)",
        means=r"a rank that it works with is gone (gloo: \1)",
        passes=True,
    ),
    KnownCause(
        said=r"NCCL error.*?Last error: (?P<last>.+)",
        means=r"NCCL: \g<last>",
        passes=True,
    ),
)
"""What libraries say of what a recipe can mend; the first that fits counts."""

_FRAME: Final = re.compile(r"^\s*File \".*\", line \d+")
_RAISED: Final = re.compile(r"^(?P<type>(?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?:: (?P<text>.*))?$")
_TABLE: Final = re.compile(r"^\d+ validation errors? for ")
_INPUT: Final = re.compile(r" \[type=\w+, input_value=.*\]$")
_ADVICE: Final = re.compile(
    r"\s*\(?\b(?:See|For|Refer|Visit|Read|Check|Checkout|Please|Learn|Background|You can|If you)\b"
    r"(?:(?!\.\s)[^\n])*?https?://[^\s)'\"]+['\")]*[^.\n]*\.?(?=\s|$)"
)
"""A sentence that sends to a page of documentation."""
_LONGEST: Final = 600

PASSING_ERRORS: Final = frozenset(
    {"ConnectionError", "TimeoutError", "TransportError", "OutOfMemoryError", "DistError", "RayError"}
)
"""Names of exceptions, and of their bases, that another try may not meet: a peer, the network or other users of a
device are behind them. By name, so that no engine has to be imported to ask."""
PEERS: Final = re.compile(
    r"gloo/|nccl: |nccl (?:error|communicator|operation)|nccl\w*error|couldn't connect|broken pipe|timed out"
    r"|timeouterror|are busy|connection ?(?:closed|reset|refused|error)|cannot be reached",
    re.IGNORECASE,
)
"""What others raise as a RuntimeError or ValueError for the same reasons: torch's collectives, clients of a network."""
_PASSING_TEXT: Final = re.compile(
    r"cuda error|free memory on device|out of memory|allocate memory"
    r"|initialization failed due to|see root cause|did not start within",
    re.IGNORECASE,
)
"""And vLLM for a device whose last user has not left yet, and for a worker process of which it does not know why it
ended; a crowded machine."""
_PASSING_ERRNOS: Final = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOMEM})


def worded(error: BaseException, place: Place = ANYWHERE, *, text: str | None = None) -> str:
    """What is wrong, in one line for a person, with the key that mends it where one is known.

    Args:
        error: What was raised.
        place: Where.
        text: What it says, where that is not simply its own text.
    """
    said = text_of(error) if text is None else text
    ours = text is None and isinstance(error, StillRayError)  # which says it already, of whatever place it quotes
    known = None if ours else _known(said)
    if known is not None:
        return _in_our_words(*known, place)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    line = _shortened(said)
    plain = text is not None or isinstance(error, StillRayError) or _is_table(error)
    return line if plain and line else f"{type(error).__name__}: {line}" if line else type(error).__name__


def may_pass(error: BaseException) -> bool:
    """Whether an exception of loading or saving a model may be gone at the next try; all others come again."""
    if {cls.__name__ for cls in type(error).__mro__} & PASSING_ERRORS:
        return True
    if isinstance(error, OSError) and error.errno is not None:  # its text holds the name of a file
        return error.errno in _PASSING_ERRNOS
    text = text_of(error)
    known = _known(text)
    return known[0].passes if known is not None else bool(PEERS.search(text) or _PASSING_TEXT.search(text))


def said_in(text: str) -> str:
    """What a traceback ends with, without the exception's module; of any other text, all of it."""
    lines = text.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if not frames:
        return text.strip()
    rest = lines[frames[-1] + 1 :]
    raised = [number for number, line in enumerate(rest) if _RAISED.match(line)]
    if not raised:
        return last_line(text)
    found = _RAISED.match(rest[raised[0]])
    assert found is not None
    first = found["text"] or ""
    message = "\n".join([first, *rest[raised[0] + 1 :]]).strip()
    kind = found["type"]
    return message if kind.startswith("still_ray.") and message else f"{kind.rpartition('.')[2]}: {message}"


def last_line(text: str) -> str:
    """The last line that says anything; of a traceback, the exception."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def text_of(error: BaseException) -> str:
    """What an exception says; of one that is a table, the sentences in it."""
    details = getattr(error, "errors", None)
    return "; ".join(_detail(detail) for detail in details()) if details and _is_table(error) else str(error)


def _is_table(error: BaseException) -> bool:
    """Whether an exception is pydantic's, which has a line for each field."""
    return callable(getattr(error, "errors", None))


def _detail(detail: Mapping[str, Any]) -> str:
    """One line of pydantic's table: which field, unless it is the whole, and what is wrong."""
    where = ".".join(map(str, detail.get("loc", ())))
    said = str(detail["msg"]).removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


def _known(text: str) -> tuple[KnownCause, re.Match[str]] | None:
    line = " ".join(text.split())
    found = ((known, re.search(known.said, line, re.IGNORECASE)) for known in KNOWN)
    return next(((known, match) for known, match in found if match), None)


def _in_our_words(known: KnownCause, match: re.Match[str], place: Place) -> str:
    said = match.expand(known.means)
    if "fits" in match.groupdict() and match["fits"] is None:
        said = said.replace(", enough for  tokens", "")
    return said.replace("{memory}", place.less_memory)


def _shortened(text: str) -> str:
    """A library's text on one line: what comes before a blank line, without what only sends to other pages."""
    text = _without_table(text)
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    line = " ".join(_ADVICE.sub("", paragraph).split()) or " ".join(paragraph.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _without_table(text: str) -> str:
    """Pydantic's table, in a traceback's text, as sentences: each field's and its message's lines alone."""
    head, _, body = text.partition("\n")
    if not _TABLE.match(head.rpartition("ValidationError: ")[2]):
        return text
    said: list[str] = []
    for line in body.splitlines():
        if line.strip().startswith("For further information"):
            continue
        said.append(_INPUT.sub("", line.strip()).removeprefix("Value error, "))
    return " ".join(said)
