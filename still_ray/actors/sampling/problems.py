"""Problems through Ray Data: a file is read in the cluster, a large one by several tasks, and pulled in batches.

They come in the order of the file, and no faster than they are pulled: Ray Data reads ahead within its own limits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path
from typing import Any

import ray.data

from still_ray.formats.file_splits import cut_files
from still_ray.formats.problems import problem_from_row, problem_row, read_problem_piece
from still_ray.location import Location, location
from still_ray.rows import Form, Piece
from still_ray.types import Problem, RunError

PIECE_BYTES = 16 * 2**20
"""Read by one task. Source: ours; a file of 50,000 problems has some 25 MB."""
READER_CPUS = 0.25
"""Ray CPUs of a reader task: it mostly waits for storage, and must fit beside the replicas on a small machine."""


def stream_problems(
    path: str, *, ids: Collection[str], batch_size: int, name: str, own: Collection[str] = ()
) -> Generator[Problem]:
    """Streams the problems of a file whose ids are wanted, each once, in the order of the file.

    Raises:
        RunError: A wanted problem is not in the file any more.

    Args:
        path: Of any form that `still_ray.rows` reads, validated before.
        ids: Which problems.
        batch_size: Problems pulled at a time.
        name: Name of the dataset in the dashboard.
        own: The domains that have a verifier of the user's own.
    """
    configure_data()
    wanted = set(ids)
    read = _reader(frozenset(ids), frozenset(own))
    read.__name__ = read.__qualname__ = f"{name}: problems"  # what Ray Data calls the operator and its tasks
    pieces = [vars(piece) for piece in cut_files([_absolute(path)], PIECE_BYTES)]
    rows = ray.data.from_items(pieces, override_num_blocks=len(pieces)).flat_map(read, num_cpus=READER_CPUS)
    rows.set_name(name)
    for batch in rows.iter_batches(batch_size=batch_size, prefetch_batches=1):
        for text in batch["problem"]:
            problem = problem_from_row(json.loads(str(text)), where=path, own=own)
            if problem.id in wanted:  # equal rows may repeat in a file
                wanted.discard(problem.id)
                yield problem
    if wanted:
        raise RunError(f"{path}: changed during the run: {len(wanted)} problems are missing, e.g. {min(wanted)}")


def _absolute(path: str) -> Location:
    """The file as any process finds it."""
    place = location(path)
    return place.resolve() if isinstance(place, Path) else place


def _reader(wanted: frozenset[str], own: frozenset[str]) -> Callable[[dict[str, Any]], Iterator[dict[str, str]]]:
    """The wanted problems of a piece of a file, each as JSON text, through the reader that has validated the file."""

    def read(row: dict[str, Any]) -> Iterator[dict[str, str]]:
        for problem in read_problem_piece(Piece(**{**row, "form": Form(row["form"])}), own=own):
            if problem.id in wanted:
                yield {"problem": json.dumps(problem_row(problem))}

    return read


def configure_data() -> None:
    """Rows keep their order. The run has a progress display of its own; Ray Data's logs stay in its log file."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
