"""The folder of one evaluation: one model on one benchmark.

    settings.json    what decides the result; written before anything is sampled
    rows/            responses as they are judged, first write of a key wins; gone when the evaluation is complete
    eval.parquet     all responses
    eval.json        the result, written last: with it the evaluation is complete

A folder whose settings are the same is resumed; one with other settings is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from still_ray.location import Location, ObjectPath, is_object
from still_ray.store.atomic import read_json, write_json
from still_ray.store.digests import file_digest, model_digest, model_files_digest
from still_ray.store.tables import read_table, write_table
from still_ray.store.trajectories import TrajectoryStore
from still_ray.types import SCHEMA_VERSION, InputError, Trajectory, TrajectoryKey

SETTINGS = "settings.json"
RESULT = "eval.json"
RAW = "eval.parquet"
ROWS = "rows"

FREE_KEYS = ("model.name", "model.path", "benchmark.name", "benchmark.source", "benchmark.path", "prompt.template")
"""What may differ when an evaluation is resumed: names and places of things whose digests are the same.

The path of a thing without a digest may not: nothing else says which thing it is.
"""
MAX_SHOWN_CHARS = 60


class EvaluationFolder:
    """One evaluation on disk; the journal of its responses (`still_ray.driver.evaluation.ResponseJournal`)."""

    def __init__(self, root: Location) -> None:
        """Names the folder; touches nothing.

        Args:
            root: The folder.
        """
        self.root = root
        self._store: TrajectoryStore | None = None

    def open(self, settings: Mapping[str, Any]) -> None:
        """Takes the folder for an evaluation with these settings: a new one, or one to resume.

        Raises:
            InputError: It holds responses made under other settings, or a result that does not say under which.
        """
        wanted = json.loads(json.dumps(settings))
        stored = _read_settings(self.root / SETTINGS, wanted)
        complete = (self.root / RESULT).exists()
        if stored is None and complete:
            raise InputError(f"{self.root / RESULT}: a result without {SETTINGS} beside it; give another --output")
        if stored is None or not (complete or self.keys()):
            write_json(self.root / SETTINGS, wanted)
            return
        if difference := first_difference(stored, wanted):
            key, before, now = difference
            raise InputError(
                f"{self.root}: holds an evaluation with other settings ({key} was {_shown(before)}, is now "
                f"{_shown(now)}); give another --output, or those settings"
            )

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether a complete evaluation of this model on this benchmark, under these names and settings, is there."""
        wanted = json.loads(json.dumps(settings))
        stored = _read_settings(self.root / SETTINGS, wanted)
        if not isinstance(stored, dict) or self.result() is None or first_difference(stored, wanted):
            return False
        return all(stored[part]["name"] == wanted[part]["name"] for part in ("model", "benchmark"))

    def result(self) -> dict[str, Any] | None:
        """The result of a complete evaluation, else None."""
        result: dict[str, Any] | None = read_json(self.root / RESULT)
        return result

    def raw(self) -> list[Trajectory]:
        """The responses of a complete evaluation.

        Raises:
            InputError: They are not those that the result was made of.
        """
        recorded = (self.result() or {}).get("raw_outputs", {})
        if not (self.root / RAW).exists() or file_digest(self.root / RAW).sha256 != recorded.get("sha256"):
            raise InputError(f"{self.root / RAW}: is not the file that {RESULT} names; evaluate again, elsewhere")
        return read_table(self.root / RAW, Trajectory)

    def keys(self) -> Collection[TrajectoryKey]:
        """See `still_ray.driver.evaluation.ResponseJournal`."""
        return self._journal.verdicts.keys()

    def commit(self, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """See `still_ray.driver.evaluation.ResponseJournal`."""
        return self._journal.commit(rows)

    def rows(self) -> list[Trajectory]:
        """See `still_ray.driver.evaluation.ResponseJournal`; makes durable what is not."""
        self._journal.flush()
        return list(self._journal)

    def finish(self, rows: Sequence[Trajectory], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the responses and then the result, which completes the evaluation.

        Args:
            rows: All responses, sorted.
            facts: What the result says besides where they are.

        Returns:
            The result.
        """
        raw = write_raw_outputs(self.root / RAW, rows)
        result = {"schema_version": SCHEMA_VERSION, **facts, "raw_outputs": raw}
        write_json(self.root / RESULT, result)
        _remove(self.root / ROWS)
        self._store = None
        return result

    @property
    def _journal(self) -> TrajectoryStore:
        if self._store is None:
            self._store = TrajectoryStore(self.root / ROWS)
        return self._store


def write_raw_outputs(path: Location, rows: Sequence[Trajectory]) -> dict[str, Any]:
    """Writes the responses of an evaluation; returns what its result says of the file."""
    write_table(path, rows, Trajectory)
    digest = file_digest(path)
    return {"file": path.name, "sha256": digest.sha256, "num_bytes": digest.num_bytes, "num_rows": len(rows)}


def model_facts(model: str) -> dict[str, Any]:
    """Path and digests of a model; no digest of one in an object store, which would have to be fetched for it."""
    digest = None if is_object(model) else model_digest(model)
    known = asdict(digest) if digest else {"sha256": None, "num_bytes": None}
    files = None if is_object(model) else model_files_digest(model)
    return {"path": model, **known, "files_sha256": files}


def first_difference(stored: Any, wanted: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """Dotted name, stored and wanted value of the first difference between two sets of settings."""
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return None if stored == wanted else (prefix.rstrip("."), stored, wanted)
    for key in [*stored, *(key for key in wanted if key not in stored)]:
        unknown = key == "path" and stored.get("sha256", "") is None
        if unknown or f"{prefix}{key}" not in FREE_KEYS:
            found = first_difference(stored.get(key), wanted.get(key), f"{prefix}{key}.")
            if found is not None:
                return found
    return None


def _read_settings(path: Location, wanted: Mapping[str, Any]) -> Any:
    """Stored settings, with what a former release did not write: it stopped at the model's own eos alone."""
    stored = read_json(path)
    if not isinstance(stored, dict) or "end_of_turn" not in wanted:
        return stored
    end = wanted["end_of_turn"]
    stopped_alike = end["token_id"] in (end["tokenizer_eos_id"], *end["generation_eos_ids"])
    return {"end_of_turn": end, **stored} if stopped_alike else stored


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _remove(folder: Location) -> None:
    if isinstance(folder, ObjectPath):
        folder.remove_all()
    else:
        shutil.rmtree(folder, ignore_errors=True)
