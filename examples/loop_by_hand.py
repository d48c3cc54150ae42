"""The loop by hand: imitate, then explore, select, train and sync. `loop_by_hand.py RUN_DIR [dotted.key=value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from still_ray import (
    Allotment, EvaluateOrder, ExploreOrder, OpenRun, Request, Stage, StageKind, TrainOrder, Trajectory, derived_seed,
    evaluate, load_recipe, open_run,
)

RECIPE = Path(__file__).parents[1] / "jobs" / "demo.yaml"


def explore(run: OpenRun, stage: Stage) -> None:
    """Samples and verifies; every response is stored once, whatever dies on the way."""
    config, store = dict(run.recipe.explorations)[stage.round], run.ports.store
    problems = tuple(sorted(run.ports.data.problem_levels())[: config.num_problems])
    allotment = Allotment(config, store.explored(stage.round))

    def commit(rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        fresh = store.commit(stage.round, rows)
        for row in fresh:
            allotment.record(row.key, row.verdict)
        return fresh

    order = ExploreOrder(stage=stage, problem_ids=problems, config=config, seed=run.recipe.seed)
    run.ports.explorer.explore(order, allotment=allotment, commit=commit)
    store.close_round(stage.round)


def train(run: OpenRun, stage: Stage, policy: str) -> str:
    """Selects rows, trains on them and brings every replica to the new weights; returns their checkpoint."""
    step, ports = run.recipe.step(stage.round, stage.method), run.ports
    explored, seed = tuple(range(1, stage.round + 1)), derived_seed(run.recipe.seed, stage.name)
    request = Request(settings=step.settings, round=stage.round, explored=explored, num_explored=None, seed=seed)
    prepared = step.method.prepare(ports.pool, request)
    print(prepared.note)
    ports.store.write_rows(stage, prepared.rows, step.method.record)
    start = run.backbone if step.settings.init == "backbone" else policy
    data, made = ports.store.data_path(stage), ports.store.checkpoint(stage)
    order = TrainOrder(stage=stage, method=step.named, settings=step.settings, init_model=start, data_path=data,
                       checkpoint=made, seed=seed)
    ports.trainer.train(order, progress=ports.progress)
    ports.sync.sync(stage.policy_version, made)
    return made


with open_run(load_recipe(RECIPE, sys.argv[2:]), sys.argv[1]) as run:
    policy = run.backbone
    run.ports.sync.sync(0, policy)
    for stage in run.stages:
        if stage.kind is StageKind.EXPLORE:
            explore(run, stage)
            continue
        policy = train(run, stage, policy) if stage.trains else policy
        order = EvaluateOrder(stage=stage, config=run.recipe.evaluate)
        _, result = evaluate(run.ports.explorer, order, run.ports.progress)
        print(f"{stage.name}: {result.accuracy:.1%} of {result.num_problems} problems")
