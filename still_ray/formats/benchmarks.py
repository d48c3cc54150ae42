"""Benchmarks by name or file: where one is, and its rows as problems.

A name stands for a file in the user's folder of benchmarks, or else for a data set of a hub, which the `datasets`
package fetches. A file is read as it is; what no other reader would read as the same problems is written out: data sets
of a hub, folders, arrays, options in an order of the seed's, answers compared in a way that their rows do not say.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from still_ray.formats.choices import has_options_apart
from still_ray.formats.file_splits import find_files
from still_ray.formats.problems import problem_from_row, problem_row
from still_ray.location import ObjectPath, is_uri, location
from still_ray.rows import SUFFIXES, Form, Row, checked_fields, form_of, read_rows
from still_ray.types import InputError, Problem

FOLDER_VARIABLE: Final = "STILL_RAY_BENCHMARKS"
HUB: Final = "hub:"
"""Before OWNER/NAME[:CONFIG[:SPLIT]], for data sets of a hub."""


@dataclass(frozen=True, kw_only=True)
class KnownBenchmark:
    """A benchmark that has a name here.

    Attributes:
        name: The name, also of its results.
        aliases: Further names; capitals, spaces and signs do not matter.
        hub: Its data sets, as OWNER/NAME:CONFIG:SPLIT; several are put together.
        domain: How its answers are compared where its rows do not say; "" for mathematics.
    """

    name: str
    aliases: tuple[str, ...]
    hub: tuple[str, ...]
    domain: str = ""


KNOWN: Final = (
    KnownBenchmark(name="MATH-OAI", aliases=("MATH-500", "MATH500"), hub=("HuggingFaceH4/MATH-500::test",)),
    KnownBenchmark(name="AIME24", aliases=("AIME-2024",), hub=("HuggingFaceH4/aime_2024::train",)),
    KnownBenchmark(
        name="AIME25",
        aliases=("AIME-2025",),
        hub=("opencompass/AIME2025:AIME2025-I:test", "opencompass/AIME2025:AIME2025-II:test"),
    ),
    KnownBenchmark(
        name="GPQA-diamond", aliases=("GPQA",), hub=("Idavidrein/gpqa:gpqa_diamond:train",), domain="choice"
    ),
    KnownBenchmark(name="OlymMATH-EN-EASY", aliases=(), hub=("RUC-AIBOX/OlymMATH:en-easy:test",)),
    KnownBenchmark(name="OlymMATH-EN-HARD", aliases=(), hub=("RUC-AIBOX/OlymMATH:en-hard:test",)),
)
GROUPS: Final = {"OlymMATH": ("OlymMATH-EN-EASY", "OlymMATH-EN-HARD")}
"""Names that stand for several benchmarks."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """Where a benchmark comes from.

    Attributes:
        name: What its results are called.
        source: A path, a URI, or hub data sets joined by "+"; `find_benchmarks` understands it again.
        domain: How its answers are compared where its rows do not say; "" for mathematics.
    """

    name: str
    source: str
    domain: str = ""


def find_benchmarks(asked: str, folder: Path | None) -> list[BenchmarkSource]:
    """What a name, a path, a URI or hub:OWNER/NAME[:CONFIG[:SPLIT]] stands for; mostly one.

    Args:
        asked: As the user gave it.
        folder: The user's folder of benchmarks; None: that of the environment variable, if it is set.

    Raises:
        InputError: It is neither a file nor a known name, or several files of the folder have that name.
    """
    if asked.startswith(HUB):
        return [_of_hub(asked)]
    names = next((names for group, names in GROUPS.items() if _folded(group) == _folded(asked)), None)
    known = _known(asked)
    if is_uri(asked) or _is_place(asked, is_name=bool(names or known)):
        return [_of_place(asked)]
    if names is not None:
        return [source for name in names for source in find_benchmarks(name, folder)]
    if known is None:
        if "/" in asked or Path(asked).suffix:
            raise InputError(f"{asked}: no such file")
        names_known = ", ".join([benchmark.name for benchmark in KNOWN] + [*GROUPS])
        raise InputError(f"{asked}: neither a file nor a known benchmark; known are {names_known}")
    place = _in_folder(known, _folder(folder))
    if place is not None:
        return [BenchmarkSource(name=known.name, source=str(place.resolve()), domain=known.domain)]
    return [BenchmarkSource(name=known.name, source=HUB + "+".join(known.hub), domain=known.domain)]


def holds_problems(source: BenchmarkSource) -> bool:
    """Whether a source is a file that `still_ray.formats.problems` reads as it is, without the source's seed or domain.

    Raises:
        InputError: The file is missing or its first row is broken.
    """
    if source.domain or source.source.startswith(HUB):
        return False
    place = location(source.source)
    if place.is_dir() or (place.is_file() and form_of(place) not in (Form.LINES, Form.PARQUET)):
        return False
    return not has_options_apart(next(read_rows(place)).fields)


def benchmark_problems(source: BenchmarkSource, *, seed: int, own: Container[str] = ()) -> Iterator[Problem]:
    """Streams the problems of a source of any form.

    Args:
        source: Where they are.
        seed: Of the order of options that stand in columns of their own.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: The source cannot be read, or a row is no problem.
    """
    for where, fields in _rows(source):
        row = fields if not source.domain or fields.get("domain") else {**fields, "domain": source.domain}
        yield problem_from_row(row, where=where, own=own, seed=seed)


def written_out(problems: Iterator[Problem]) -> str:
    """Problems as the JSON Lines that `still_ray.formats.problems` reads back."""
    return "".join(json.dumps(problem_row(problem), ensure_ascii=False) + "\n" for problem in problems)


def _folder(given: Path | None) -> Path | None:
    """The user's folder of benchmarks.

    Raises:
        InputError: It is named and not there.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    folder = given or (Path(named) if named else None)
    if folder is not None and not folder.is_dir():
        option = "--benchmarks-dir" if given else FOLDER_VARIABLE
        raise InputError(f"{folder}: no such folder; {option} names the one that holds benchmark files")
    return folder


def _in_folder(known: KnownBenchmark, folder: Path | None) -> Path | None:
    """The benchmark's file in a folder: by name, else by alias, of a suffix that is read, or a folder of `datasets`.

    Raises:
        InputError: Several could be it.
    """
    if folder is None:
        return None
    for wanted in ({_folded(known.name)}, {_folded(alias) for alias in known.aliases}):
        found = [path for path in sorted(folder.iterdir()) if _stem(path) in wanted]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{folder}: several could be {known.name}: {names}; give the one by --benchmark FILE")
        if found:
            return found[0]
    return None


def _stem(path: Path) -> str | None:
    """The folded name of a file or folder that could be a benchmark; None for any other."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return _folded(path.name.removesuffix(suffix)) if suffix or path.is_dir() else None


def _is_place(asked: str, *, is_name: bool) -> bool:
    """Whether something of that path is meant; a folder that is called like a benchmark may hold results of it."""
    if is_name and os.sep not in asked and Path(asked).is_dir():
        return False
    return Path(asked).exists()


def _known(name: str) -> KnownBenchmark | None:
    folded = _folded(name)
    return next((one for one in KNOWN if folded in {_folded(known) for known in (one.name, *one.aliases)}), None)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_place(asked: str) -> BenchmarkSource:
    """A file of the user's; one that is called like a known benchmark is judged like it."""
    place = location(asked)
    stem = place.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    known = _known(stem)
    source = asked if isinstance(place, ObjectPath) else str(place.resolve())
    return BenchmarkSource(name=_as_name(stem), source=source, domain=known.domain if known else "")


def _of_hub(asked: str) -> BenchmarkSource:
    parts = asked.removeprefix(HUB).split("+")
    for part in parts:
        if not re.fullmatch(r"[^:]+(:[^:]*){0,2}", part):
            raise InputError(
                f"{asked}: hub:OWNER/NAME, hub:OWNER/NAME:CONFIG or hub:OWNER/NAME:CONFIG:SPLIT is expected"
            )
    known = next((one for one in KNOWN if one.hub == tuple(parts)), None)
    if known is not None:
        return BenchmarkSource(name=known.name, source=asked, domain=known.domain)
    return BenchmarkSource(name=_as_name(parts[0].partition(":")[0].rpartition("/")[2]), source=asked)


def _as_name(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "benchmark"


def _rows(source: BenchmarkSource) -> Iterator[Row]:
    if source.source.startswith(HUB):
        for part in source.source.removeprefix(HUB).split("+"):
            yield from _hub_rows(part)
        return
    place = location(source.source)
    files = [place] if isinstance(place, ObjectPath) else find_files([place]).files  # of a folder of `datasets`
    for file in files:
        yield from read_rows(file)


def _hub_rows(part: str) -> Iterator[Row]:
    """The rows of a data set of a hub, or of a local directory that `datasets` can load."""
    from datasets import load_dataset

    name, config, split = (*part.split(":"), "", "")[:3]
    try:
        loaded = load_dataset(name, config or None, split=split or "test")
    except Exception as error:  # named policy: whatever the hub's client raises is one line for the person who asked
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{HUB}{part}: the data set cannot be loaded: {reason}; put its file into a folder and name that by "
            f"--benchmarks-dir or {FOLDER_VARIABLE}, or give --benchmark FILE"
        ) from None
    for number, fields in enumerate(loaded, start=1):
        where = f"{HUB}{part}, row {number}"
        yield Row(where, checked_fields(fields, where))
