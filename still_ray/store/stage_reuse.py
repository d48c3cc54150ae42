"""Finished stages taken over from another run directory: the same work, done once.

On a file system the files are hard links, since nothing here changes a file after its rename; in an object store, or
across file systems, they are copies. The manifest comes last and says whose work it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from still_ray.algo.stages import Stage
from still_ray.facts import Adoption
from still_ray.location import Location, ObjectPath
from still_ray.store.manifest import MANIFEST, Manifest, read_manifest, store_manifest
from still_ray.store.run_directory import RunDirectory
from still_ray.store.transfer import PARALLEL_FILES, files_below
from still_ray.types import RunError, StageKind


def reuse_stage(source: RunDirectory, target: RunDirectory, stage: Stage, *, origin: str) -> Manifest:
    """Gives a run a stage that another run finished; a crash at any moment leaves the stage complete or undone.

    Args:
        source: Has the stage, its manifest valid.
        target: Lacks it.
        stage: Which.
        origin: What the manifest calls the source.

    Returns:
        The manifest.

    Raises:
        RunError: The source has no such stage, or what arrived is not what its manifest says.
    """
    manifest = read_manifest(source.stage(stage))
    if manifest is None:
        raise RunError(f"{source.stage(stage)}: is not complete, so {target.root} cannot take it over")
    if stage.kind is StageKind.EXPLORE:
        _copy_folder(source.trajectories(stage.round), target.trajectories(stage.round))
    _copy_folder(source.stage(stage), target.stage(stage))
    facts = manifest.facts
    credit = facts.adopted or Adoption(origin=origin, seconds=facts.seconds)
    store_manifest(target.stage(stage), replace(manifest, facts=replace(facts, seconds=0.0, adopted=credit)))
    adopted = read_manifest(target.stage(stage))
    if adopted is None:
        raise RunError(f"{target.stage(stage)}: what was copied from {source.root} does not match its manifest")
    return adopted


def _copy_folder(source: Location, target: Location) -> None:
    """Every file but the manifest; what an interrupted stage left at the target goes first."""
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        target.remove_all()
        names = [name for name in source.files() if name != MANIFEST]
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            list(pool.map(lambda name: _copy_object(source / name, target / name), names))
        return
    assert isinstance(source, Path) and isinstance(target, Path), "runs of an ablation lie side by side"  # noqa: PT018
    shutil.rmtree(target, ignore_errors=True)
    for name in files_below(source):
        if name != MANIFEST:
            _link(source / name, target / name)


def _copy_object(source: ObjectPath, target: ObjectPath) -> None:
    """Through this machine, one file at a time: a store's own copy ends at 5 GB."""
    with tempfile.TemporaryDirectory(prefix="still-ray-") as folder:
        file = Path(folder) / "content"
        source.copy_to(file)
        target.copy_from(file)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
