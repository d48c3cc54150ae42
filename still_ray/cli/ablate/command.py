"""`ablate`: every run of a matrix over every seed, work that runs have in common done once, one table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import yaml

from still_ray.algo.ablation.sharing import (
    AblationRun,
    InputDigests,
    PlannedRun,
    check_comparisons,
    deciding,
    expand,
    plan_sharing,
    reusable,
    stage_digests,
)
from still_ray.algo.placement import NOTHING_KNOWN, AtHand
from still_ray.algo.stages import advance
from still_ray.cli.ablate.printing import print_ablation, print_plan, read_result, write_ablation
from still_ray.cli.console.progress import ConsoleProgress, print_note
from still_ray.cli.preflight.files import RunFiles, check_files, with_world
from still_ray.cli.preflight.inputs import InputReader, named_inputs
from still_ray.cli.preflight.library_arguments import check_library_arguments
from still_ray.cli.preflight.machines import (
    check_room,
    check_trackers,
    crowding,
    may_have_gpus,
    sandbox_problem,
    settled_lengths,
)
from still_ray.cli.preflight.models import (
    CheckedModel,
    adapter_notes,
    check_model,
    check_scopes,
    check_turns,
    end_of_turn_notes,
    format_notes,
    resolve_backbone,
    with_date,
    with_format,
)
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.preflight.provenance import package_versions, run_settings, this_command
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.cli.preflight.resume import (
    FREE_KEYS,
    check_same_recipe,
    is_complete,
    untrained,
    with_kept_format,
    with_kept_lengths,
    with_new_keys,
)
from still_ray.config import Recipe, dump_recipe
from still_ray.config.ablation import Matrix, load_matrix, load_run
from still_ray.driver.ports import Ports
from still_ray.driver.rounds import Driver
from still_ray.store.atomic import read_json, write_json, write_text
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.store.stage_reuse import reuse_stage
from still_ray.types import InputError, RunError

if TYPE_CHECKING:
    from still_ray.actors.session import Session

DIGESTS = "stages.json"
"""In each run's folder: digests of its stages, and of the inputs that it was begun with."""


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """What the command line says; see its help."""

    matrix: Path
    run_dir: str | None
    plan: bool
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run whose files are there and in order.

    Attributes:
        run: The run.
        directory: Its run directory.
        recipe: Its recipe with the paths of the tiny world's files.
        files: Its files.
        digests: Of its stages.
        at_hand: What its sizes follow from.
        baseline: Response format that the backbone is asked for first, see `Driver`.
        sizes: What was settled by the model and the machine, a line each.
    """

    run: AblationRun
    directory: RunDirectory
    recipe: Recipe
    files: RunFiles
    digests: Mapping[str, str]
    at_hand: AtHand = NOTHING_KNOWN
    baseline: str = ""
    sizes: tuple[str, ...] = ()


Perform = Callable[[PreparedRun], None]
"""Does what is left to do of a run."""


def ablate(options: AblateOptions) -> None:
    """Runs a matrix to its end, or resumes it, and prints its table.

    Raises:
        InputError: The matrix, a recipe, a file or the run directory is wrong.
        RunError: A run failed.
    """
    matrix = load_matrix(options.matrix)
    runs = _runs(matrix, options)
    if options.plan:
        print_plan(matrix, _planned(runs))
        return
    root = RunDirectory(options.run_dir or f"runs/{options.matrix.stem}")
    check_kept(root.root, option="--run-dir")
    root.create(option="--run-dir")
    if root.recipe.exists():
        raise InputError(f"{root.root}: holds a run, not an ablation; give another --run-dir")
    with root.locked(note=print_note):
        prepared = _prepared(matrix, runs, root, origin=str(options.matrix))
        _warn(prepared)
        with _performing(root, matrix.name) as perform:
            carry_out(prepared, perform, note=print_note)
        result = read_result(matrix, [(one.run, one.directory) for one in prepared])
        write_ablation(result, root, versions=package_versions())
    print_ablation(result, root)


def _runs(matrix: Matrix, options: AblateOptions) -> tuple[AblationRun, ...]:
    def recipe_of(name: str, seed: int) -> Recipe:
        return load_run(matrix, name, seed, options.overrides, origin=str(options.matrix))

    return expand(matrix, recipe_of, origin=str(options.matrix))


def _planned(runs: Sequence[AblationRun]) -> list[PlannedRun]:
    return plan_sharing([(run, stage_digests(run.recipe, named_inputs(run.recipe), free=FREE_KEYS)) for run in runs])


def _prepared(matrix: Matrix, runs: Sequence[AblationRun], root: RunDirectory, *, origin: str) -> list[PreparedRun]:
    """Everything that can be wrong with any of the runs is found before the first of them starts."""
    reader, checked = InputReader(), dict[str, CheckedModel]()
    for run in runs:
        look = _look(run)
        if look not in checked:
            backbone = resolve_backbone(run.recipe.model.path)
            model = checked[look] = check_model(backbone, run.recipe)
            check_trackers(run.recipe.trainer)
            check_own_objects(run.recipe)
            unasked = check_library_arguments(run.recipe, has_gpus=may_have_gpus())
            told = (*end_of_turn_notes(backbone, model.end), *format_notes(model), *adapter_notes(run.recipe, model))
            for note in (*told, *unasked):
                print_note(note)
    looked = [_looked_at(run, root, reader, checked[_look(run)]) for run in runs]
    _require_one_length(runs, [one for one, _ in looked])
    for note in dict.fromkeys(note for one, _ in looked for note in one.sizes):
        print_note(note)
    check_comparisons(
        matrix, {(one.run.name, one.run.seed): _asked(one, inputs) for one, inputs in looked}, origin=origin
    )
    smallest = min((one for one, _ in looked), key=lambda one: one.at_hand.num_parameters)
    stages = {one.digests[stage.name] for one, _ in looked for stage in untrained(one.directory, one.run.recipe)}
    check_room(
        root.root,
        smallest.recipe,
        smallest.at_hand,
        num_checkpoints=len(stages),
    )
    heaviest = max((one for one, _ in looked), key=lambda one: one.at_hand.num_parameters)
    for note in crowding(heaviest.recipe, heaviest.at_hand):
        print_note(note)
    for one, inputs in looked:
        _write(one, inputs)
    return [one for one, _ in looked]


_OPEN_LENGTHS: Final[Mapping[str, Callable[[Recipe], int | str]]] = {
    "model.max_length": lambda recipe: recipe.model.max_length,
    "evaluate.max_tokens": lambda recipe: recipe.evaluate.max_tokens,
    "imitate.max_length": lambda recipe: recipe.imitate.max_length,
}
"""Lengths that all runs have, and that follow from everything a run needs where its recipe leaves them open."""


def _require_one_length(asked: Sequence[AblationRun], looked: Sequence[PreparedRun]) -> None:
    """Whether runs of one model that leave a length open have come to the same: else their rows say nothing.

    Raises:
        InputError: They have not.
    """
    for key, length in _OPEN_LENGTHS.items():
        found: dict[str, dict[int | str, str]] = {}
        for run, one in zip(asked, looked, strict=True):
            if length(run.recipe) == "auto":
                found.setdefault(run.recipe.model.path, {}).setdefault(length(one.recipe), run.id)
        for lengths in found.values():
            if len(lengths) > 1:
                each = ", ".join(f"{number:,} for {run}" for number, run in lengths.items())
                raise InputError(f"{key}: follows from this machine's memory and differs ({each}); give the matrix one")


def _look(run: AblationRun) -> str:
    """What of a run decides how its model, trackers and verifiers look: those that are equal are looked at once."""
    return run.recipe.model_dump_json(include={"model", "prompt", "sampler", "trainer", "verifier"})


def _looked_at(
    run: AblationRun, root: RunDirectory, reader: InputReader, model: CheckedModel
) -> tuple[PreparedRun, InputDigests]:
    """A run with its lengths settled and its tiny world written, and what its files hold.

    Raises:
        InputError: A file is wrong, or the folder holds a run of another recipe or of other files.
    """
    directory = RunDirectory(root.root / "runs" / run.id)
    dated = with_date(run.recipe, root, asks=model.asks_date)
    kept = with_kept_lengths(directory, with_kept_format(directory, dated))
    recipe, at_hand, sizes = settled_lengths(kept, model.shape)
    check_scopes(recipe, model.format_for(recipe))
    run = replace(run, recipe=recipe)
    directory.create()
    check_same_recipe(directory, run.recipe)
    resolved = with_format(with_world(run.recipe, directory), model.format_for(recipe))
    files = check_files(resolved.data, seed=resolved.seed, own=resolved.verifier.custom)
    check_turns(model, files)
    inputs = reader.digests(resolved)
    _check_begun_alike(directory, run.recipe, inputs)
    digests = stage_digests(resolved, inputs, free=FREE_KEYS)
    prepared = PreparedRun(
        run=run,
        directory=directory,
        recipe=resolved,
        files=files,
        digests=digests,
        at_hand=at_hand,
        baseline=model.baseline(run.recipe),
        sizes=sizes,
    )
    return prepared, inputs


def _check_begun_alike(directory: RunDirectory, recipe: Recipe, inputs: InputDigests) -> None:
    """Whether a run may go on: its files hold what they did, and no key that decides a result was changed.

    Only what was begun has a recipe; keys that the schema has gained since are taken at their defaults.
    """
    if not directory.recipe.exists():
        return
    stored = read_json(directory.root / DIGESTS)
    if stored is None:
        raise InputError(f"{directory.root}: holds a run that no ablation made; give another --run-dir")
    if "inputs" not in stored:
        raise InputError(
            f"{directory.root}: was begun by a version that did not note what its files hold; give another --run-dir"
        )
    if key := inputs.first_difference(stored["inputs"]):
        raise InputError(
            f"{directory.root}: was begun with another content of {key}; give another --run-dir, or that of before"
        )
    values = with_new_keys(yaml.safe_load(directory.recipe.read_text(encoding="utf-8")), recipe)
    before, now = (deciding(one, free=FREE_KEYS) for one in (values, recipe.model_dump(mode="json")))
    changed = next((key for key in {**before, **now} if before.get(key) != now.get(key)), None)
    if changed:
        raise InputError(
            f"{directory.root}: was begun with {changed} {before.get(changed)}, not {now.get(changed)}, which decides "
            "results; give another --run-dir, or the value of before"
        )


def _asked(one: PreparedRun, inputs: InputDigests) -> dict[str, Any]:
    """What decides which problems a run evaluates how often, by key of the recipe."""
    evaluate, count = one.recipe.evaluate, one.files.test.count
    return {
        "data.test": inputs.test,
        "evaluate.num_problems": min(count, evaluate.num_problems or count),
        "evaluate.num_samples": evaluate.num_samples,
    }


def _write(one: PreparedRun, inputs: InputDigests) -> None:
    """Writes a run's files; the recipe says that it was begun, so what it was begun with comes first."""
    versions = package_versions()
    write_json(one.directory.root / DIGESTS, {"stages": one.digests, "inputs": asdict(inputs)})
    write_text(one.directory.recipe, dump_recipe(one.run.recipe, versions))
    backbone = resolve_backbone(one.run.recipe.model.path)
    settings = run_settings(one.recipe, backbone, one.files, versions, at_hand=one.at_hand)
    write_json(one.directory.evaluation_settings, settings)


def _warn(prepared: Sequence[PreparedRun]) -> None:
    """What is no error and should be known, once for each seed and kind."""
    said = set()
    for one in prepared:
        files = one.files
        lines = []
        if files.num_leaked:
            lines.append(
                f"{files.num_leaked} of {files.test.count} held-out questions are also among the demonstrations or "
                "problems: accuracies on them are not held-out"
            )
        if problem := sandbox_problem(files, one.recipe.verifier):
            lines.append(f"every verdict on code will be error: no sandbox: {problem}")
        for line in lines:
            if line not in said:
                print_note(f"warning: {one.run.id}: {line}")
                said.add(line)


def carry_out(prepared: Sequence[PreparedRun], perform: Perform, *, note: Callable[[str], None]) -> None:
    """Brings every run to its end, in order; stages that an earlier run has are taken over.

    Args:
        prepared: The runs.
        perform: Does what is left to do of one.
        note: Takes a line for a person.

    Raises:
        RunError: A run failed; names it.
    """
    folders = {one.run.id: one.directory for one in prepared}
    owners: dict[str, str] = {}
    for number, one in enumerate(prepared, start=1):
        with one.directory.locked(note=note), _naming(one.run):
            store = RunStore(one.directory, one.run.stages)
            found = reusable(one.run.stages, one.digests, store.completed(), owners)
            for stage, owner in found:
                reuse_stage(folders[owner], one.directory, stage, origin=owner)
            left = advance(one.run.stages, store.completed())
            note(_headline(number, len(prepared), one.run, found, is_left=left is not None))
            if left is not None:
                perform(one)
            elif not is_complete(one.directory, one.run.recipe):
                _conclude(one)
            owners = {**{one.digests[name]: one.run.id for name in store.completed()}, **owners}


@contextmanager
def _naming(run: AblationRun) -> Iterator[None]:
    """Puts the run's name before what it failed of."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{run.id}: {error}") from error


def _headline(number: int, count: int, run: AblationRun, found: Sequence[tuple[Any, str]], *, is_left: bool) -> str:
    owners = ", ".join(dict.fromkeys(owner for _, owner in found))
    shared = f"; {', '.join(stage.name for stage, _ in found)} from {owners}" if found else ""
    return f"run {number} of {count}: {run.id}{'' if is_left or found else ' is complete already'}{shared}"


def _conclude(one: PreparedRun) -> None:
    """The last lines of a run whose every stage is there: its summary and its state."""
    with ConsoleProgress(MetricsLog(one.directory.metrics)) as progress:
        unused = dict.fromkeys(("data", "explorer", "trainer", "sync"), cast(Any, None))
        ports = Ports(store=RunStore(one.directory, one.run.stages), progress=progress, **unused)
        Driver(one.recipe, ports, backbone=resolve_backbone(one.recipe.model.path)).run()


@contextmanager
def _performing(root: RunDirectory, name: str) -> Iterator[Perform]:
    """Runs on Ray; nothing starts before the first run that has something left to do."""
    session: Session | None = None
    with ExitStack() as stack:

        def perform(one: PreparedRun) -> None:
            nonlocal session
            from still_ray.actors.session import RunInputs, Session

            session = session or stack.enter_context(Session(root, name=name))
            backbone = resolve_backbone(one.recipe.model.path)
            inputs = RunInputs(
                recipe=one.recipe,
                backbone=backbone,
                data=one.files,
                test_ids=one.files.test.ids,
                forgetting_ids=one.files.forgetting_ids,
                command=this_command(),
                at_hand=one.at_hand,
                baseline=one.baseline,
            )
            with ConsoleProgress(MetricsLog(one.directory.metrics)) as progress:
                session.run(inputs, one.directory, progress)

        yield perform
