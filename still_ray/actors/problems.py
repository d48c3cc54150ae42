"""Problems through Ray Data: files are read and parsed in the cluster and pulled in batches.

consumes     a JSON Lines or Parquet file of problems
produces     problems, in the order that blocks become ready
waits for    the reader tasks
unblocked by pulling: Ray Data reads ahead only as far as its own limits let it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from typing import Any

import ray.data

from still_ray.formats.problems import problem_from_row, problem_row
from still_ray.location import ObjectPath, location
from still_ray.types import Problem, RunError

READER_CPUS = 0.25
"""Ray CPUs of a reader task: it mostly waits for storage, and must fit beside the replicas on a small machine."""


def stream_problems(path: str, *, ids: Collection[str], batch_size: int, name: str) -> Generator[Problem]:
    """Streams the problems of a file whose ids are wanted, each once.

    Raises:
        RunError: A wanted problem is not in the file any more.

    Args:
        path: JSON Lines or Parquet, validated before.
        ids: Which problems.
        batch_size: Problems pulled at a time.
        name: Name of the dataset in the dashboard.
    """
    configure_data()
    wanted = set(ids)
    parse = _parser(path, frozenset(ids))
    parse.__name__ = parse.__qualname__ = f"{name}: problems"  # what Ray Data calls the operator and its tasks
    rows = _rows(path).flat_map(parse, num_cpus=READER_CPUS)
    rows.set_name(name)
    for batch in rows.iter_batches(batch_size=batch_size, prefetch_batches=1):
        for text in batch["problem"]:
            problem = problem_from_row(json.loads(str(text)), where=path)
            if problem.id in wanted:  # equal rows may repeat in a file
                wanted.discard(problem.id)
                yield problem
    if wanted:
        raise RunError(f"{path}: changed during the run: {len(wanted)} problems are missing, e.g. {min(wanted)}")


def _rows(path: str) -> ray.data.Dataset:
    # Not read_text: it also splits at U+2028 and its like, which JSON strings may hold.
    place = location(path)
    read = ray.data.read_parquet if place.suffix == ".parquet" else ray.data.read_binary_files
    if isinstance(place, ObjectPath):
        return read(place.key, filesystem=place.filesystem, num_cpus=READER_CPUS)
    return read(path, num_cpus=READER_CPUS)


def _parser(path: str, wanted: frozenset[str]) -> Callable[[dict[str, Any]], list[dict[str, str]]]:
    """The wanted problems of a Parquet row, or of a whole file of JSON Lines, each as JSON text."""
    is_parquet = location(path).suffix == ".parquet"

    def parse(row: dict[str, Any]) -> list[dict[str, str]]:
        rows: Iterable[Mapping[str, Any]] = [row] if is_parquet else _json_lines(row["bytes"])
        problems = (problem_from_row(fields, where=path) for fields in rows)
        return [{"problem": json.dumps(problem_row(problem))} for problem in problems if problem.id in wanted]

    return parse


def _json_lines(content: bytes) -> Iterator[Mapping[str, Any]]:
    for line in content.split(b"\n"):
        if line.strip():
            yield json.loads(line.decode("utf-8-sig"))


def configure_data() -> None:
    """The run has a progress display of its own; Ray Data's logs stay in its log file."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
