"""What must hold of a rehearsal's run directory, and of what was seen while it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from still_ray.algo.exploration import Allotment, allotment_of, choose_problems
from still_ray.algo.planning.bundles import PLACEMENTS
from still_ray.algo.rehearsal.faults import FaultKind
from still_ray.algo.rehearsal.held import Observation, misplaced
from still_ray.algo.stages import Stage, plan_stages
from still_ray.config import Recipe
from still_ray.facts import SkippedFacts, StageFacts, TrainFacts
from still_ray.formats.problems import validate_problems
from still_ray.store.policy import read_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import StageKind, TrajectoryKey, Verdict

if TYPE_CHECKING:
    from still_ray.actors.rehearsal.fault_injector import Death
    from still_ray.actors.rehearsal.run import RehearsalRun


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: What.
        holds: Whether it does.
        detail: The numbers, or what is wrong.
    """

    name: str
    holds: bool
    detail: str


def checks_of(recipe: Recipe, directory: RunDirectory, rehearsed: RehearsalRun, *, has_gpus: bool) -> list[Check]:
    """Everything that is checked, read again from the directory.

    Args:
        recipe: At rehearsal size.
        directory: The run directory.
        rehearsed: What was seen.
        has_gpus: Whether the machines have GPUs.
    """
    plan = plan_stages(recipe)
    store = RunStore(directory, plan)
    completed = store.completed()
    trained = [(stage, completed.get(stage.name)) for stage in plan]
    return [
        _stages(plan, completed),
        *(_policy(stage, facts, store) for stage, facts in trained if isinstance(facts, TrainFacts)),
        *round_checks(recipe, store),
        *(Check(name=text, holds=survived, detail=how) for text, survived, how in survivals(recipe, rehearsed)),
        _placement(recipe, rehearsed, has_gpus=has_gpus),
    ]


def _stages(plan: tuple[Stage, ...], completed: Mapping[str, StageFacts]) -> Check:
    missing = [stage.name for stage in plan if stage.name not in completed]
    skipped = [
        f"{one.stage} was skipped ({one.skipped})" for one in completed.values() if isinstance(one, SkippedFacts)
    ]
    lacking = f"no valid manifest: {', '.join(missing)}" if missing else ""
    detail = "; ".join([f"{len(completed)} of {len(plan)}", *filter(None, [lacking]), *skipped])
    return Check(name="every stage has a valid manifest", holds=not missing, detail=detail)


def _policy(stage: Stage, facts: TrainFacts, store: RunStore) -> Check:
    """The stage made its version, and every replica proved that it serves it."""
    record, sync = read_policy_record(store.checkpoint(stage)), facts.sync
    made = record.policy_version if record else None
    holds = made == sync.policy_version == stage.policy_version and sync.num_replicas > 0
    detail = f"{sync.num_replicas} replicas by {sync.transport}, probes off by {sync.max_logprob_difference:g}"
    return Check(name=f"{stage.name}: version {stage.policy_version} was made and proved", holds=holds, detail=detail)


def round_checks(recipe: Recipe, store: RunStore) -> Iterator[Check]:
    """Of every round, whether each sample that it had to draw is stored once, and none besides."""
    index = validate_problems(str(recipe.data.problems), own=recipe.verifier.custom)
    levels = dict(zip(index.ids, index.levels, strict=True))
    solved: set[str] = set()
    explorations = dict(recipe.explorations)
    for stage in (stage for stage in plan_stages(recipe) if stage.kind is StageKind.EXPLORE):
        config = explorations[stage.round]
        chosen = choose_problems(levels, config, solved=solved, seed=recipe.seed, round_number=stage.round)
        candidates = list(store.candidates([stage.round]))
        counts = Counter(store.stored_keys(stage.round))
        verdicts = {candidate.key: candidate.verdict for candidate in candidates}
        solved |= {candidate.key.problem_id for candidate in candidates if candidate.verdict is Verdict.CORRECT}
        allotment = allotment_of(config, chosen, verdicts, partial(store.sampled_tokens, stage.round))
        wrong = _wrong_keys(chosen, counts, allotment, stage.round)
        name = f"{stage.name}: every (round, problem, sample) is stored exactly once"
        numbers = f"{len(counts)} rollouts of {len(chosen)} problems"
        yield Check(name=name, holds=not wrong, detail=wrong or numbers)


def _wrong_keys(chosen: list[str], counts: Counter[TrajectoryKey], allotment: Allotment, number: int) -> str:
    """What is missing, twice or too much; "" if nothing."""
    stored: dict[str, set[int]] = {problem: set() for problem in chosen}
    strangers = [key for key in counts if key.round != number or key.problem_id not in stored]
    for key in counts:
        stored.setdefault(key.problem_id, set()).add(key.sample_index)
    twice = [key for key, count in counts.items() if count > 1]
    missing = [problem for problem in chosen if allotment.wanted(problem) or stored[problem] != _first(stored[problem])]
    found: dict[str, Sequence[object]] = {"twice": twice, "of no chosen problem": strangers, "incomplete": missing}
    return "; ".join(f"{len(keys)} {what}, e.g. {keys[0]}" for what, keys in found.items() if keys)


def _first(indices: set[int]) -> set[int]:
    return set(range(len(indices)))


def survivals(recipe: Recipe, rehearsed: RehearsalRun) -> Iterator[tuple[str, bool, str]]:
    """Every death: which it was, whether the run made up for it, and how."""
    for death in rehearsed.deaths:
        text = f"{death.fault.stage}: death of a {death.fault.kind}"
        if not death.victim:
            yield text, False, "there was none to kill"
            continue
        survived, how = _survival(death, recipe, rehearsed)
        yield f"{text}, {death.victim}", survived, how


def _survival(death: Death, recipe: Recipe, rehearsed: RehearsalRun) -> tuple[bool, str]:
    if death.fault.kind is FaultKind.RANK:
        return rehearsed.num_rebuilt > 0, "the group was built again" if rehearsed.num_rebuilt else "nobody noticed"
    role = "verifier" if death.fault.kind is FaultKind.VERIFIER else "sampler"
    later = rehearsed.observations[death.num_observations :]
    turns = role == "sampler" and PLACEMENTS[recipe.placement].takes_turns  # then every stage has replicas of its own
    if turns:
        later = tuple(observation for observation in later if observation.stage == death.fault.stage) or later
    if newcomers := _newcomers(death, later, role):
        return True, f"{newcomers[0]} took over"
    enough = recipe.sampler.min_replicas if role == "sampler" else None
    survivors = len(later[-1].of(role)) if later else 0
    if enough and survivors >= enough:
        return True, f"{survivors} replicas went on, which sampler.min_replicas ({enough}) allows"
    launched = [rehearsed.replaced[name] for name in death.lost if name in rehearsed.replaced]
    lost_again = [name for name in launched if name in rehearsed.replaced]
    if survivors and launched and (turns or lost_again):
        last = rehearsed.replaced[lost_again[0]] if lost_again else launched[0]
        return True, f"{survivors} others went on to the end before {last}, launched for it, was up"
    return False, "nobody took over"


def _newcomers(death: Death, later: tuple[Observation, ...], role: str) -> list[str]:
    """Actors of a role that were first seen after a death, in the order in which they were seen."""
    names = [held.name for observation in later for held in observation.of(role)]
    return [name for name in dict.fromkeys(names) if name not in death.names]


def _placement(recipe: Recipe, rehearsed: RehearsalRun, *, has_gpus: bool) -> Check:
    wrong = misplaced(recipe, rehearsed.observations, has_gpus=has_gpus)
    detail = "; ".join(wrong) or f"{len(rehearsed.observations)} looks"
    return Check(
        name="every actor holds what the recipe asks for, on a machine that has it", holds=not wrong, detail=detail
    )
