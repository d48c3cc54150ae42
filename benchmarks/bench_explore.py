"""Sampled tokens a second of an exploration stage, verdicts and store included, against vLLM alone on the same prompts.

    python -m benchmarks.bench_explore --problems 400 --samples 8 --repeats 3

The policy is the tiny world's after imitation. Ours: two replicas of one thread, verifiers and the trajectory store, as
`make demo` has them. Baselines, in a process that takes turns with ours: `vllm.LLM.generate` with all requests at once
on as many threads and as many sequences, and the same followed by math-verify, one response after another. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figure
from benchmarks.scripts.grade import is_correct
from benchmarks.scripts.sample import start_engine
from still_ray import (
    ExploreOrder,
    OpenRun,
    Recipe,
    Request,
    Stage,
    StageKind,
    TrainOrder,
    explore,
    load_recipe,
    open_run,
)

DEMO = Path(__file__).parents[1] / "jobs" / "demo.yaml"


def recipe_of(problems: int, samples: int, repeats: int) -> Recipe:
    """The demo's, with a round for each repeat, and without evaluations in between."""
    rounds = [{"method": "sft", "explore": {"num_problems": problems, "samples_per_problem": samples}}] * repeats
    return load_recipe(str(DEMO), [f"rounds={json.dumps(rounds)}", f"data.tiny_world.num_problems={problems}"])


def imitation(run: OpenRun) -> TrainOrder:
    """Writes the rows of imitation; the order to train on them."""
    stage = next(stage for stage in run.stages if stage.kind is StageKind.IMITATE)
    step = run.recipe.step(stage.round, stage.method)
    prepared = step.method.prepare(
        run.ports.pool, Request(settings=step.settings, explored=(), num_explored=None, seed=1)
    )
    run.ports.store.write_rows(stage, prepared.rows, step.method.record)
    return TrainOrder(
        stage=stage,
        method=step.named,
        settings=step.settings,
        init_model=run.backbone,
        data_path=run.ports.store.data_path(stage),
        checkpoint=run.ports.store.checkpoint(stage),
        seed=1,
    )


def imitated(run: OpenRun) -> str:
    """Trains on the demonstrations and brings the replicas to it; the checkpoint."""
    order = imitation(run)
    run.ports.trainer.train(order, progress=run.ports.progress)
    run.ports.sync.sync(order.stage.policy_version, order.checkpoint)
    return order.checkpoint


def explored(run: OpenRun, stage: Stage) -> tuple[float, int]:
    """Explores once; seconds and tokens."""
    config = dict(run.recipe.explorations)[stage.round]
    problems = tuple(sorted(run.ports.data.problem_levels())[: config.num_problems])
    order = ExploreOrder(stage=stage, problem_ids=problems, config=config, seed=stage.round)
    started = time.perf_counter()
    explore(run.ports, order)
    seconds = time.perf_counter() - started
    keys = [row.key for row in run.ports.pool.candidates((stage.round,))]
    return seconds, sum(row.num_tokens for row in run.ports.pool.trajectories(keys))


# -- the baseline: what a script does -------------------------------------------------------------------------------


def serve_baseline(checkpoint: str, requests: Path) -> None:
    """Generates and verifies once for each line on stdin; prints seconds of both and tokens as a JSON line."""
    asked = json.loads(requests.read_text(encoding="utf-8"))
    engine = start_engine(checkpoint, max_num_seqs=asked["max_num_seqs"], max_model_len=512)
    import vllm

    prompts = [{"prompt_token_ids": ids} for ids in asked["prompt_ids"]]
    for number, _ in enumerate(sys.stdin):
        params = [
            vllm.SamplingParams(
                n=asked["samples"],
                temperature=asked["temperature"],
                max_tokens=asked["max_tokens"],
                seed=number + index,
            )
            for index in range(len(prompts))
        ]
        started = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        sampled = time.perf_counter()
        texts = [
            (one.text, answer) for out, answer in zip(outputs, asked["answers"], strict=True) for one in out.outputs
        ]
        for text, answer in texts:
            is_correct(text, answer)
        tokens = sum(len(one.token_ids) for out in outputs for one in out.outputs)
        seconds = sampled - started, time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=sys.__stdout__, flush=True)


@contextmanager
def baseline(checkpoint: str, requests: Path) -> Iterator[subprocess.Popen[str]]:
    """The baseline's process, on the cores that the replicas have together."""
    command = [sys.executable, "-m", "benchmarks.bench_explore", "--serve-baseline", checkpoint, str(requests)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin
            process.stdin.close()


def generated(process: subprocess.Popen[str]) -> dict[str, Any]:
    """One pass of the baseline."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"seconds"'):
            passed: dict[str, Any] = json.loads(line)
            return passed
    raise RuntimeError("the baseline ended")


def write_requests(run: OpenRun, checkpoint: str, path: Path) -> None:
    """What both are asked, as token ids of the checkpoint's own chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = dict(run.recipe.explorations)[1]
    template = Path(run.recipe.prompt.template or "").read_text(encoding="utf-8")
    world = [json.loads(line) for line in Path(run.recipe.data.problems or "").read_text(encoding="utf-8").splitlines()]
    turns = [[{"role": "user", "content": template.replace("{question}", row["problem"])}] for row in world]
    ids = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    asked = {
        "prompt_ids": ids[: config.num_problems],
        "answers": [str(row["answer"]) for row in world][: config.num_problems],
        "samples": config.samples_per_problem,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "max_num_seqs": 2 * int(run.recipe.sampler.max_num_seqs),
    }
    path.write_text(json.dumps(asked), encoding="utf-8")


def measure(problems: int, samples: int, repeats: int) -> None:
    """Prints the figures."""
    recipe = recipe_of(problems, samples, repeats)
    with tempfile.TemporaryDirectory() as folder, open_run(recipe, Path(folder) / "run") as run:
        checkpoint, requests = imitated(run), Path(folder) / "requests.json"
        write_requests(run, checkpoint, requests)
        with baseline(checkpoint, requests) as process:
            print_medians(*in_turns(run, process))


def in_turns(run: OpenRun, process: subprocess.Popen[str]) -> tuple[list[float], list[float], list[float]]:
    """Tokens a second of ours, of the baseline's sampling, and of it with its verification, round by round."""
    ours, raw, judged = list[float](), list[float](), list[float]()
    generated(process)  # both sides are warm: the replicas have scored the probes
    for stage in [stage for stage in run.stages if stage.kind is StageKind.EXPLORE]:
        seconds, tokens = explored(run, stage)
        ours.append(tokens / seconds)
        passed = generated(process)
        raw.append(passed["tokens"] / passed["seconds"][0])
        judged.append(passed["tokens"] / passed["seconds"][1])
    return ours, raw, judged


def print_medians(ours: Sequence[float], raw: Sequence[float], judged: Sequence[float]) -> None:
    """One line against each baseline."""
    value = statistics.median(ours)
    print_figure("explore_against_generate", value=value, unit="tokens/s", baseline=statistics.median(raw))
    print_figure(
        "explore_against_generate_and_verify", value=value, unit="tokens/s", baseline=statistics.median(judged)
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve-baseline", nargs=2, metavar=("CHECKPOINT", "REQUESTS"))
    arguments = parser.parse_args()
    if arguments.serve_baseline:
        serve_baseline(arguments.serve_baseline[0], Path(arguments.serve_baseline[1]))
    else:
        measure(arguments.problems, arguments.samples, arguments.repeats)


if __name__ == "__main__":
    main()
