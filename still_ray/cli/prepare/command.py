"""`prepare`: raw rows become demonstrations or problems that a run can use."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.cli.prepare.printing import print_report, report_of
from still_ray.config.loading import load_section
from still_ray.config.prepare import FieldsConfig, PrepareConfig
from still_ray.prepare.filters.overlap import EvaluationIndex, build_index
from still_ray.store.atomic import write_atomically, write_json, write_text
from still_ray.types import InputError
from still_ray.verifiers.custom import check_custom_verifiers

if TYPE_CHECKING:
    from still_ray.prepare.counts import Counts

TABLES: Final = ("demonstrations.parquet", "problems.parquet")
REPORT: Final = "report.json"
BROKEN: Final = "broken.jsonl"
DROPPED: Final = "dropped"
PARTIAL: Final = ".partial"
MAX_NAMED: Final = 10
"""Files left out that are named on screen."""
FIELDS: Final = tuple(FieldsConfig.model_fields)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The command's options; see `still-ray prepare --help`."""

    inputs: tuple[Path, ...]
    output: Path
    recipe: Path | None
    against: tuple[Path, ...]
    fields: tuple[str, ...]
    samples: int | None
    strict: bool
    force: bool
    as_json: bool
    overrides: tuple[str, ...]


def prepare_rows(options: PrepareOptions) -> None:
    """Prepares the inputs and prints the report.

    Raises:
        InputError: The recipe, an input or an option is wrong, or, if strict, a row.
        RunError: The preparation failed, or a file is damaged.
    """
    from still_ray.formats.file_splits import cut_files, find_files

    config = prepare_config(options)
    _check_tokenizer(config)
    check_custom_verifiers(config.wrong_answer.custom, key="wrong_answer.custom")
    check_kept(options.output, option="--output")
    files, skipped = find_files(options.inputs, options.output)
    pieces = cut_files(files, int(config.block_mib * (1 << 20)))
    index = _evaluation_index(config)
    with _output_folder(options.output, force=options.force) as partial:
        from still_ray.actors.prepare import PrepareJob, prepare
        from still_ray.prepare.sift import SiftSettings

        settings = SiftSettings(config=config, index=index, folder=partial, strict=options.strict)
        with ConsoleProgress(None) as progress:
            progress.noted(f"{len(files)} file(s), {sum(piece.num_bytes for piece in pieces) / (1 << 20):,.1f} MiB")
            if skipped:
                progress.noted(f"not read: {_few(skipped)}")
            if index is not None:
                progress.noted(f"evaluation sets: {index.num_questions} questions")
            counts = prepare(PrepareJob(pieces=pieces, settings=settings), progress)
        report = report_of(counts, config, [str(path) for path in files])
        _publish(options.output, partial, counts, report)
    print_report(report, options.output, as_json=options.as_json)


def prepare_config(options: PrepareOptions) -> PrepareConfig:
    """The recipe with what the options say.

    Raises:
        InputError: A key or a value is wrong.
    """
    overrides = [*options.overrides, *map(_field_override, options.fields)]
    if options.samples is not None:
        overrides.append(f"sample_per_filter={options.samples}")
    config = load_section(PrepareConfig, options.recipe, overrides, resolve=absolute_paths)
    files = (*config.decontaminate.files, *(str(path.resolve()) for path in options.against))
    return config.model_copy(update={"decontaminate": config.decontaminate.model_copy(update={"files": files})})


def absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Makes the paths of a recipe absolute, from the folder that they are relative to."""
    result = dict(raw)
    length, overlap = raw.get("length"), raw.get("decontaminate")
    if isinstance(length, dict) and isinstance(length.get("tokenizer"), str):
        result["length"] = {**length, "tokenizer": _tokenizer_file(folder / Path(length["tokenizer"]).expanduser())}
    if isinstance(overlap, dict) and isinstance(overlap.get("files"), list):
        files = [str(folder / Path(name).expanduser()) if isinstance(name, str) else name for name in overlap["files"]]
        result["decontaminate"] = {**overlap, "files": files}
    return result


def _tokenizer_file(path: Path) -> str:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"length.tokenizer: {file}: no such file; give a tokenizer.json or a folder that holds one")
    return os.path.normpath(file)


def _check_tokenizer(config: PrepareConfig) -> None:
    """Loads the tokenizer once before anything starts.

    Raises:
        InputError: It is none.
    """
    if config.length.tokenizer is None:
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(config.length.tokenizer)
    except Exception as error:  # it raises nothing more exact
        why = " ".join(str(error).split())
        raise InputError(f"length.tokenizer: {config.length.tokenizer}: not a tokenizer.json: {why}") from None


def _few(paths: Sequence[Path]) -> str:
    """Some paths by name, the rest by number."""
    named = ", ".join(map(str, paths[:MAX_NAMED]))
    return f"{named} and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else named


def _field_override(text: str) -> str:
    name, equals, column = text.partition("=")
    if not equals or not column or name not in FIELDS:
        raise InputError(f"--field {text}: must be NAME=COLUMN, NAME one of {', '.join(FIELDS)}")
    return f"fields.{name}={json.dumps(column)}"


def _evaluation_index(config: PrepareConfig) -> EvaluationIndex | None:
    """The index of the evaluation sets; None without any.

    Raises:
        InputError: A file is missing or a row has no question.
    """
    from still_ray.formats.adapters import question_of
    from still_ray.rows import read_rows

    settings = config.decontaminate
    if not settings.enabled or not settings.files:
        return None
    rows = (row for name in settings.files for row in read_rows(Path(name)))
    return build_index((question_of(row.fields, fields=FieldsConfig(), where=row.where) for row in rows), settings)


@contextmanager
def _output_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder inside the output for what is not complete; gone at the end, however it ends.

    Raises:
        InputError: The output holds prepared data, cannot be written, or another process works there.
    """
    taken = next((name for name in (REPORT, *TABLES) if (output / name).exists()), None)
    if taken and not force:
        raise InputError(f"{output}: holds {taken} already; give another --output, or --force to replace it")
    partial = output / PARTIAL
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error.strerror}); give another --output") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{output}: another still-ray works in this folder; wait for it or stop it") from None
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial.resolve()
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(output: Path, partial: Path, counts: Counts, report: dict[str, Any]) -> None:
    """Moves complete files to their names, the report last: where it is, all of its files are."""
    for name in (REPORT, *TABLES, BROKEN):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / DROPPED, ignore_errors=True)
    for name in TABLES:
        if (partial / name).exists():
            # Renaming within one file system; `write_atomically` flushes it to disk first.
            write_atomically(output / name, lambda path, name=name: _move(partial / name, path))  # type: ignore[misc]
    named = counts.broken[: report["recipe"]["max_broken_named"]]
    if named:
        _write_lines(output / BROKEN, [broken._asdict() for broken in named])
    for name in counts.dropped:
        if rows := counts.samples.of(name):
            _write_lines(output / DROPPED / f"{name}.jsonl", rows)
    write_json(output / REPORT, report)


def _move(source: Path, target: Path) -> None:
    source.replace(target)


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
