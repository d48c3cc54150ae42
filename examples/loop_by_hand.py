"""The loop by hand: imitate, then explore, select, train and sync. `loop_by_hand.py RUN_DIR [dotted.key=value ...]`."""

import sys

from still_ray import (
    EvaluateOrder,
    ExploreOrder,
    OpenRun,
    Request,
    Stage,
    StageKind,
    TrainOrder,
    evaluate,
    explore,
    load_recipe,
    open_run,
)


def sample(run: OpenRun, stage: Stage) -> None:
    """Samples and verifies; every response is stored once, whatever dies on the way."""
    config = dict(run.recipe.explorations)[stage.round]
    problems = tuple(sorted(run.ports.data.problem_levels())[: config.num_problems])
    explore(run.ports, ExploreOrder(stage=stage, problem_ids=problems, config=config, seed=stage.round))


def train(run: OpenRun, stage: Stage, policy: str) -> str:
    """Selects rows, trains on them and brings every replica to the new weights; returns their checkpoint."""
    step, ports = run.recipe.step(stage.round, stage.method), run.ports
    rounds = tuple(range(1, stage.round + 1))
    request = Request(settings=step.settings, explored=rounds, num_explored=None, seed=1)
    prepared = step.method.prepare(ports.pool, request)
    print(prepared.note)
    ports.store.write_rows(stage, prepared.rows, step.method.record)
    order = TrainOrder(
        stage=stage,
        method=step.named,
        settings=step.settings,
        init_model=run.backbone if step.settings.init == "backbone" else policy,
        data_path=ports.store.data_path(stage),
        checkpoint=ports.store.checkpoint(stage),
        seed=1,
    )
    ports.trainer.train(order, progress=ports.progress)
    ports.sync.sync(stage.policy_version, order.checkpoint)
    return order.checkpoint


with open_run(load_recipe("jobs/demo.yaml", sys.argv[2:]), sys.argv[1]) as run:
    policy = run.backbone
    run.ports.sync.sync(0, policy)
    for stage in run.stages:
        if stage.kind is StageKind.EXPLORE:
            sample(run, stage)
            continue
        if stage.trains:
            policy = train(run, stage, policy)
        order = EvaluateOrder(stage=stage, config=run.recipe.evaluate)
        _, result = evaluate(run.ports.explorer, order, run.ports.progress)
        print(f"{stage.name}: {result.accuracy:.1%} of {result.num_problems} problems")
