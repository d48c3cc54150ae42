"""Which runs an ablation consists of, and which stages they have in common.

Every stage has a digest of all that decides its result: what went before it, its own settings, the content of the files
that it reads, the seed where it uses it. Two stages with the same digest are the same work, so it is done once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from still_ray.algo.stages import Stage, plan_stages
from still_ray.config import Recipe
from still_ray.config.ablation import Matrix
from still_ray.config.library_arguments import OPTIONAL_KEYS, is_unused, used_settings
from still_ray.config.methods import METHODS
from still_ray.types import InputError, StageKind

OWN_PART: Final = ("name", "seed", "data", "prompt", "imitate", "explore", *METHODS, "rounds", "evaluate")
"""Sections that count where a stage uses them, or by the content of the file that they name."""
ALWAYS_DECIDING: Final = (
    *("sampler.dtype", "sampler.tensor_parallel_size", "trainer.bf16"),
    *("verifier.timeout_s", "verifier.memory_mib", "verifier.code"),
    *OPTIONAL_KEYS,
)
"""Keys among resources and time limits that change numbers or verdicts; runs that share work must agree in them."""
CONTENT_OF: Final = {
    "model": "model.path",
    "template": "prompt.template",
    "demonstrations": "data.demonstrations",
    "problems": "data.problems",
    "test": "data.test",
    "forgetting": "data.forgetting",
    "verifiers": "verifier.custom",
    "own_code": "train, select.strategy or pairs.rule",
}
"""The key of a recipe that names what each of `InputDigests` is the content of."""


@dataclass(frozen=True, kw_only=True)
class InputDigests:
    """What a run's files hold.

    Attributes:
        model: The backbone.
        template: Text of the prompt template.
        demonstrations: Content of the file.
        problems: Content of the file.
        test: Content of the file.
        verifiers: Source of the user's own verifiers; "" without any.
        own_code: Source of the user's own training methods, selection strategies and pair rules; "" without any.
        forgetting: Content of the general problems, and how they are asked; "" without any.
    """

    model: str
    template: str
    demonstrations: str
    problems: str
    test: str
    verifiers: str = ""
    own_code: str = ""
    forgetting: str = ""

    def first_difference(self, stored: Mapping[str, str]) -> str | None:
        """The key of a recipe whose content is another than a stored one; what the stored lacks is left out."""
        return next((CONTENT_OF[name] for name, found in vars(self).items() if stored.get(name, found) != found), None)


@dataclass(frozen=True, kw_only=True)
class AblationRun:
    """One run of an ablation: one variation of the recipe, with one seed.

    Attributes:
        name: The variation.
        seed: The seed.
        recipe: The resolved recipe.
    """

    name: str
    seed: int
    recipe: Recipe

    @property
    def id(self) -> str:
        """Name of its folder."""
        return f"{self.name}-seed{self.seed}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages in order."""
        return plan_stages(self.recipe)


def expand(matrix: Matrix, recipe_of: Callable[[str, int], Recipe], *, origin: str) -> tuple[AblationRun, ...]:
    """Every run of a matrix: all runs of the first seed, then all of the next, so that whole tables come early.

    Args:
        matrix: The matrix.
        recipe_of: The recipe of a run and a seed.
        origin: The matrix file, for errors.

    Raises:
        InputError: A row names a stage that its run does not have.
    """
    runs = tuple(
        AblationRun(name=name, seed=seed, recipe=recipe_of(name, seed)) for seed in matrix.seeds for name in matrix.runs
    )
    evaluated = {run.name: [stage.name for stage in run.stages if stage.kind is not StageKind.EXPLORE] for run in runs}
    for index, row in enumerate(matrix.rows):
        if row.stage not in evaluated[row.run]:
            known = ", ".join(evaluated[row.run])
            raise InputError(f"{origin}: rows.{index}.stage: run {row.run} evaluates no stage {row.stage!r}; {known}")
    return runs


def check_comparisons(matrix: Matrix, asked: Mapping[tuple[str, int], Mapping[str, Any]], *, origin: str) -> None:
    """Sees to it that two rows that are to be compared are asked the same problems equally often.

    Args:
        matrix: The matrix.
        asked: What decides that, by key of the recipe, for each run and seed.
        origin: The matrix file, for errors.

    Raises:
        InputError: The runs of a comparison differ in one of the keys.
    """
    run_of = {row.name: row.run for row in matrix.rows}
    for index, comparison in enumerate(matrix.comparisons):
        first, second = run_of[comparison.first], run_of[comparison.second]
        for seed in matrix.seeds:
            theirs = asked[second, seed]
            key = next((key for key, value in asked[first, seed].items() if theirs[key] != value), None)
            if key is not None:
                raise InputError(
                    f"{origin}: comparisons.{index}: runs {first} and {second} differ in {key} under seed {seed}, so "
                    "they cannot be compared problem by problem; give both the same, or leave the comparison out"
                )


def stage_digests(recipe: Recipe, inputs: InputDigests, *, free: Collection[str]) -> dict[str, str]:
    """The digest of every stage of a recipe, by stage name.

    Args:
        recipe: The resolved recipe.
        inputs: What its files hold.
        free: Dotted keys that never decide a result: resources and time limits.
    """
    return digests_of(recipe.model_dump(mode="json"), plan_stages(recipe), inputs, free=free)


def digests_of(
    values: Mapping[str, Any], plan: Sequence[Stage], inputs: InputDigests, *, free: Collection[str]
) -> dict[str, str]:
    """The same for a recipe as plain values, and its stages."""
    files = {"model": inputs.model, "template": inputs.template, "verifiers": inputs.verifiers}
    if inputs.own_code:
        files["own_code"] = inputs.own_code
    common = {"recipe": deciding(values, free=free), **files}
    digests = {}
    previous = ""
    for stage in plan:
        own = _own_part(stage, values, inputs)
        previous = _digest({"previous": previous, "stage": stage.name, "own": own, **({} if previous else common)})
        digests[stage.name] = previous
    return digests


def reusable(
    plan: Sequence[Stage], digests: Mapping[str, str], have: Collection[str], owners: Mapping[str, str]
) -> list[tuple[Stage, str]]:
    """The stages that a run may take over: from the first that it lacks, as long as another run has each.

    Args:
        plan: The run's stages in order.
        digests: Their digests by name.
        have: Names of those that are complete.
        owners: Run that has a complete stage, by the stage's digest.
    """
    found = []
    for stage in plan:
        if stage.name in have:
            continue
        owner = owners.get(digests[stage.name])
        if owner is None:
            break
        found.append((stage, owner))
    return found


def deciding(values: Mapping[str, Any], *, free: Collection[str]) -> dict[str, Any]:
    """The recipe by dotted key without what never decides a result, and without what single stages use.

    Keys that are left out are named, not those that stay: a new key of the schema counts until someone says otherwise.
    A recipe that leaves one of `OPTIONAL_KEYS` away decides as it did before there was the key.

    Args:
        values: The recipe as plain values.
        free: As in `stage_digests`.
    """
    flat = {key: value for key, value in _flat(values) if key.partition(".")[0] not in OWN_PART and key != "model.path"}
    used = {key: value for key, value in flat.items() if not is_unused(key, value)}
    return {key: value for key, value in used.items() if _is_below(key, ALWAYS_DECIDING) or not _is_below(key, free)}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What a run will have to do.

    Attributes:
        id: The run.
        adopted: Stages taken over, with the run that they come from.
        computed: Stages of its own.
    """

    id: str
    adopted: tuple[tuple[str, str], ...]
    computed: tuple[str, ...]


def plan_sharing(runs: Sequence[tuple[AblationRun, Mapping[str, str]]]) -> list[PlannedRun]:
    """What each run computes and what it takes over, when they are done in order.

    Args:
        runs: Runs with the digests of their stages.
    """
    owners: dict[str, str] = {}
    planned = []
    for run, digests in runs:
        adopted = [(stage.name, owner) for stage, owner in reusable(run.stages, digests, (), owners)]
        computed = [stage.name for stage in run.stages[len(adopted) :]]
        owners |= {digests[name]: run.id for name in computed}
        planned.append(PlannedRun(id=run.id, adopted=tuple(adopted), computed=tuple(computed)))
    return planned


def _own_part(stage: Stage, values: Mapping[str, Any], inputs: InputDigests) -> dict[str, Any]:
    """What a stage uses that no stage before it did."""
    if stage.kind is StageKind.BACKBONE:  # greedy, so the seed does not count
        asked = {"evaluate": values["evaluate"], "test": inputs.test}
        return {**asked, "forgetting": inputs.forgetting} if inputs.forgetting else asked
    if stage.kind is StageKind.IMITATE:
        return {
            "seed": values["seed"],
            "training": used_settings(values["imitate"]),
            "demonstrations": inputs.demonstrations,
        }
    entry = values["rounds"][stage.round - 1]
    if stage.kind is StageKind.EXPLORE:
        return {"explore": used_settings(entry["explore"]), "problems": inputs.problems}
    return {"training": used_settings(entry[stage.method])}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return pairs


def _is_below(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
