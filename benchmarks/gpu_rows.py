"""What a row of the GPU benchmark measures in a run that is open, see `benchmarks.gpu_hour`."""

from __future__ import annotations

import math
import random
import shutil
import statistics
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO, cast

from benchmarks.figures import print_failure, print_figure
from benchmarks.gpus import Devices
from still_ray import ExploreOrder, OpenRun, Recipe, Stage, StageKind, TrainOrder, explore
from still_ray.algo.placement import AtHand, resolve
from still_ray.algo.planning.budget import (
    CPU_ENGINE_START_S,
    CPU_SAMPLER_TOKENS_PER_S,
    GPU_ENGINE_START_S,
    SLEEP_WAKE_S,
    STORAGE_BYTES_PER_S,
    SYNC_BYTES_PER_S,
    TRAINER_START_S,
    Speed,
    flops_per_token,
)
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.trainer_memory import trainer_memories
from still_ray.config import TrainingStep
from still_ray.driver.ports import Progress
from still_ray.types import (
    PEAK_MEMORY,
    PreferencePair,
    RunError,
    SyncReport,
    TrainingExample,
    TrainProgress,
    TrainResult,
)

WARM_UP_STEPS: Final = 2
TIMED_STEPS: Final = 3
_OVERHEAD_TOKENS: Final = 96
"""Of a row, at most, around its thought: question, solution, markers and turns, in bytes."""
_LARGEST_SHARE: Final = 0.25
"""Of a device that a replica's weights may take; most is left to the KV cache. Source: jobs/qwen2.5-32b.yaml."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths in tokens, and numbers, of the rows.

    Attributes:
        short: Of the shortest rows of training, and of pairs.
        long: Of rows as the paper's responses.
        longest: Of rows that few ranks hold by themselves.
        pair: Of either side of long pairs.
        response: Of drawn responses.
        greedy: Of greedy ones: near-ties of random weights part even engines that agree.
        num_problems: That are sampled once each.
    """

    short: int
    long: int
    longest: int
    pair: int
    response: int
    greedy: int
    num_problems: int


SIZES: Final = {
    "cuda": Sizes(short=4096, long=20_000, longest=32_768, pair=14_000, response=2048, greedy=32, num_problems=128),
    "cpu": Sizes(short=128, long=192, longest=256, pair=160, response=24, greedy=16, num_problems=12),
}


@dataclass(kw_only=True)
class Table:
    """What was measured, a line of the page each; printed as it comes.

    Attributes:
        lines: Of the page.
        printed: Takes the JSON lines.
    """

    lines: list[str] = field(default_factory=list)
    printed: TextIO = field(default_factory=lambda: sys.stdout)

    def figure(self, row: str, what: str, *, value: float, unit: str, baseline: float, against: str) -> None:
        """Takes a figure; its name is that of the row with a word of what it is."""
        with redirect_stdout(self.printed):
            print_figure(f"{row}_{what.replace(' ', '_')}", value=value, unit=unit, baseline=baseline)
        ratio = f"**{value / baseline:.2f}**"
        self.lines.append(f"| {row} | {what} | {value:,.4g} | {unit} | {baseline:,.4g} | {ratio} | {against} |")

    def failure(self, row: str, cause: str) -> None:
        """Takes a row that could not be measured."""
        with redirect_stdout(self.printed):
            print_failure(row, cause)
        reason = cause.partition("; log: ")[0].replace("|", "/")
        self.lines.append(f"| {row} | failed |  |  |  |  | {reason} |")

    def page(self, head: str) -> str:
        """The whole page."""
        columns = "| row | what | measured | unit | baseline | ratio | the baseline is |\n|---|---|--:|---|--:|--:|---|"
        return "\n".join((f"# On GPUs\n\n{head}\n", columns, *self.lines, ""))


@dataclass(kw_only=True)
class Hour:
    """What all rows share.

    Attributes:
        devices: Of the cluster.
        shape: The model's.
        model: Its folder.
        folder: Of the runs.
        table: Takes what is measured.
        deadline: When everything has to be over, on the monotonic clock.
        row_s: What a row may take, with the start of its session.
        trained: Policy version and checkpoint that later rows serve.
        greedy: Greedy responses of a checkpoint by the first row that asked for them.
        tokens_per_s: Of one device of a replica that samples without further options.
    """

    devices: Devices
    shape: ModelShape
    model: Path
    folder: Path
    table: Table
    deadline: float
    row_s: float
    trained: tuple[int, str] | None = None
    greedy: dict[str, list[str]] = field(default_factory=dict)
    tokens_per_s: float = 0.0

    @property
    def on_gpu(self) -> bool:
        """Whether these are GPUs."""
        return self.devices.kind == "cuda"

    @property
    def sizes(self) -> Sizes:
        """Of the rows."""
        return SIZES[self.devices.kind]

    @property
    def weight_bytes(self) -> int:
        """Of the model."""
        return self.shape.num_parameters * (2 if self.on_gpu else 4)

    @property
    def stored_s(self) -> float:
        """What the weights take from or to shared storage, as `plan` assumes."""
        return self.weight_bytes / STORAGE_BYTES_PER_S

    @property
    def devices_per_replica(self) -> int:
        """The fewest of which a replica's weights leave most to the KV cache; one on a CPU."""
        least = self.weight_bytes / (_LARGEST_SHARE * self.devices.num_bytes) if self.on_gpu else 1
        fitting = (size for size in (1, 2, 4, 8) if size >= least and self.shape.num_kv_heads % size == 0)
        return next(fitting, math.gcd(8, self.shape.num_kv_heads))

    @property
    def sharing(self) -> int:
        """Ranks that share a row: four, or as many as there are and heads can be divided by."""
        return math.gcd(4, self.devices.count, self.shape.num_heads)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A row whose turn it is.

    Attributes:
        hour: What all share.
        run: The session's run.
        name: The row's.
        round: Its round of the recipe.
        is_first: Whether nothing was done yet in this run.
        opened_at: When the run's actors were launched, on the monotonic clock.
    """

    hour: Hour
    run: OpenRun
    name: str
    round: int
    is_first: bool
    opened_at: float

    def stage(self, kind: StageKind) -> Stage:
        """The stage of that kind in the row's round."""
        return next(stage for stage in self.run.stages if (stage.round, stage.kind) == (self.round, kind))

    def figure(self, what: str, **facts: Any) -> None:
        """Takes a figure of the row, see `Table.figure`."""
        self.hour.table.figure(self.name, what, **facts)

    def serve(self) -> SyncReport:
        """Has engines that were started from the backbone take the trained weights in place.

        Raises:
            RunError: No row before has trained any.
        """
        if self.hour.trained is None:
            raise RunError("no row before has left trained weights")
        if self.is_first:
            self.run.ports.sync.sync(0, self.run.backbone)
        return self.run.ports.sync.sync(*self.hour.trained)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is measured at a time.

    Attributes:
        name: Of its figures.
        round: Its round of the recipe.
        measure: Measures it.
    """

    name: str
    measure: Callable[[Turn], None]
    round: Mapping[str, Any] = field(default_factory=lambda: {"explore": {}, "train": []})


class Watch:
    """A `Progress` that keeps when what was done and what the ranks reported, and hands all on."""

    def __init__(self, inner: Progress) -> None:
        """Has seen nothing yet."""
        self._inner = inner
        self.began: list[float] = []
        self.reports: list[TrainProgress] = []
        self.first_step_at = self.last_step_at = 0.0

    def __getattr__(self, name: str) -> Any:
        """What is not looked at."""
        return getattr(self._inner, name)

    def doing(self, what: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.began.append(time.monotonic())
        self._inner.doing(what)

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.last_step_at = time.monotonic()
        self.first_step_at = self.first_step_at or self.last_step_at
        self.reports.append(report)
        self._inner.trained(stage, report)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A stage that was trained.

    Attributes:
        order: It.
        step: Of the recipe.
        result: What the trainer says of it.
        watch: What was seen meanwhile.
        end: When the checkpoint was there, on the monotonic clock.
    """

    order: TrainOrder
    step: TrainingStep
    result: TrainResult
    watch: Watch
    end: float

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks in the steps after the warm-up, which have equally many tokens each."""
        return statistics.harmonic_mean([r.tokens_per_s for r in self.watch.reports if r.step > WARM_UP_STEPS])

    @property
    def length(self) -> int:
        """Mean tokens of a sequence."""
        return self.result.num_tokens // (self.result.num_examples * self.step.method.num_sequences)


def trained(turn: Turn) -> Trained:
    """Trains the row's stage on rows of its full length, one a forward pass."""
    run, stage = turn.run, turn.stage(StageKind.TRAIN)
    step = run.recipe.step(stage.round, stage.method)
    num_rows = (WARM_UP_STEPS + TIMED_STEPS) * step.settings.global_batch_size
    run.ports.store.write_rows(
        stage, random_rows(stage.method, num_rows, step.settings.longest, seed=turn.round), step.method.record
    )
    order = TrainOrder(
        stage=stage,
        method=step.named,
        settings=step.settings,
        init_model=run.backbone,
        data_path=run.ports.store.data_path(stage),
        checkpoint=run.ports.store.checkpoint(stage),
        seed=1,
    )
    watch = Watch(run.ports.progress)
    result = run.ports.trainer.train(order, progress=cast(Progress, watch))
    return Trained(order=order, step=step, result=result, watch=watch, end=time.monotonic())


def random_rows(method: str, num_rows: int, length: int, *, seed: int) -> Iterator[object]:
    """Rows of letters, a token each."""
    generator = random.Random(seed)
    for number in range(num_rows):
        texts = ["".join(generator.choices(string.ascii_lowercase, k=length - _OVERHEAD_TOKENS)) for _ in range(2)]
        if method == "dpo":
            yield _pair(f"p{number}", *texts)
        else:
            yield TrainingExample(
                source="demonstration",
                source_id=f"d{number}",
                domain="math",
                question=f"What is {number}?",
                thought=texts[0],
                solution=r"\boxed{0}",
            )


def _pair(problem_id: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        problem_id=problem_id,
        question=f"What is {problem_id}?",
        chosen_id=f"1/{problem_id}/0",
        rejected_id=f"1/{problem_id}/1",
        chosen_thought=chosen,
        chosen_solution=r"\boxed{0}",
        rejected_thought=rejected,
        rejected_solution=r"\boxed{1}",
        chosen_perplexity=1.0,
        rejected_perplexity=1.0,
    )


def measure_training(turn: Turn, *, keeps: bool = False) -> None:
    """Speed and memory; of the first row of a session also what is around the steps.

    Args:
        turn: The row.
        keeps: Whether later rows serve what it trains.
    """
    hour, done = turn.hour, trained(turn)
    _measure_steps(turn, done)
    if turn.is_first:
        _measure_around_steps(turn, done)
    if keeps:
        keep(hour, done)
    else:
        shutil.rmtree(done.order.checkpoint)


def _measure_steps(turn: Turn, done: Trained) -> None:
    hour, lora = turn.hour, turn.run.recipe.trainer.lora
    needed = flops_per_token(hour.shape, mean_tokens=done.length, is_frozen=lora is not None)
    peak = hour.devices.count * hour.devices.peak_flops / needed
    turn.figure("speed", value=done.tokens_per_s, unit="tokens/s", baseline=peak, against="the devices' peak: MFU")
    if PEAK_MEMORY in (metrics := done.watch.reports[-1].metrics):
        planned = planned_bytes(hour, turn.run.recipe, done.step) / 2**30
        turn.figure("memory", value=metrics[PEAK_MEMORY], unit="GiB", baseline=planned, against="`plan`")


def _measure_around_steps(turn: Turn, done: Trained) -> None:
    first_step_s = done.result.num_tokens / done.result.steps / done.watch.reports[0].tokens_per_s
    started = done.watch.first_step_at - first_step_s - turn.opened_at
    assumed = TRAINER_START_S + turn.hour.stored_s
    turn.figure("trainer start", value=started, unit="s", baseline=assumed, against="`plan`, weights read")
    saved = done.end - done.watch.last_step_at
    turn.figure("checkpoint", value=saved, unit="s", baseline=turn.hour.stored_s, against="`plan`, probes apart")


def planned_bytes(hour: Hour, recipe: Recipe, step: TrainingStep) -> int:
    """Of a rank's device, as `plan` counts it.

    Args:
        hour: Says which model on what.
        recipe: The session's.
        step: One of its training stages.
    """
    resolved = resolve(recipe, has_gpus=hour.on_gpu, at_hand=AtHand(shape=hour.shape, machine=None))
    return trainer_memories(resolved, hour.shape)[step.where].peak_bytes


def keep(hour: Hour, done: Trained) -> None:
    """Has later rows serve what was trained, in place of what was kept before."""
    if hour.trained is not None:
        shutil.rmtree(hour.trained[1])
    hour.trained = done.order.stage.policy_version, done.order.checkpoint


def measure_elastic(turn: Turn) -> None:
    """Engines fall asleep, ranks train on their devices, the engines wake and take the weights."""
    if turn.is_first:
        turn.run.ports.sync.sync(0, turn.run.backbone)
    done = trained(turn)
    asleep_s = done.watch.began[1] - done.watch.began[0]  # the first thing that is done, as the message says
    report = _synced(turn, done)
    _measure_steps(turn, done)
    assumed = SLEEP_WAKE_S + turn.hour.stored_s
    turn.figure("sleep", value=asleep_s, unit="s", baseline=SLEEP_WAKE_S, against="`plan`, for sleep and wake together")
    turn.figure("sleep wake sync", value=asleep_s + report.seconds, unit="s", baseline=assumed, against="`plan`")
    keep(turn.hour, done)
    _compare_greedy(turn)


def measure_sync(turn: Turn) -> None:
    """The recipe's transport to replicas that stay up."""
    if turn.is_first:
        turn.run.ports.sync.sync(0, turn.run.backbone)
    done = trained(turn)
    report = _synced(turn, done)
    assumed = turn.hour.weight_bytes / SYNC_BYTES_PER_S
    turn.figure("sync", value=report.seconds, unit="s", baseline=assumed, against=f"`plan`; by {report.transport}")
    shutil.rmtree(done.order.checkpoint)


def _synced(turn: Turn, done: Trained) -> SyncReport:
    """Brings the replicas to what was trained.

    Raises:
        RunError: They read the checkpoint in place of what the recipe names.
    """
    report = turn.run.ports.sync.sync(done.order.stage.policy_version, done.order.checkpoint)
    if "checkpoint" in report.transport:
        raise RunError(f"replicas read the checkpoint, not {turn.run.recipe.sync.transport}: see the notes on stderr")
    return report


def measure_engine_start(turn: Turn) -> None:
    """An engine of its own, until it serves."""
    report = turn.run.ports.sync.sync(0, turn.run.backbone)
    assumed = (GPU_ENGINE_START_S if turn.hour.on_gpu else CPU_ENGINE_START_S) + turn.hour.stored_s
    turn.figure("engine start", value=report.seconds, unit="s", baseline=assumed, against="`plan`, weights read")


def measure_checkpoint_sync(turn: Turn) -> None:
    """Replicas that stay up read a checkpoint."""
    report = turn.serve()
    turn.figure("sync", value=report.seconds, unit="s", baseline=turn.hour.stored_s, against="`plan`; by checkpoint")


def measure_sampling(turn: Turn, *, has_options: bool = False) -> None:
    """Drawn responses of one replica, all of the same length, with verdicts and store.

    Args:
        turn: The row.
        has_options: Whether its engine has further arguments, so that the baseline is the engine without them.
    """
    turn.serve()
    hour = turn.hour
    started = time.perf_counter()
    num_tokens = sum(row_tokens for _, row_tokens in _responses(turn, temperature=1.0, max_tokens=hour.sizes.response))
    rate = num_tokens / (time.perf_counter() - started) / hour.devices_per_replica
    if not has_options:
        hour.tokens_per_s = rate
    assumed = Speed().tokens_per_s(hour.shape) if hour.on_gpu else CPU_SAMPLER_TOKENS_PER_S
    baseline, against = (hour.tokens_per_s, "without it") if has_options and hour.tokens_per_s else (assumed, "`plan`")
    turn.figure("sampling", value=rate, unit="tokens/s per device", baseline=baseline, against=against)


def measure_greedy(turn: Turn) -> None:
    """Greedy responses of engines that took the trained weights in place."""
    turn.serve()
    _compare_greedy(turn)


def _compare_greedy(turn: Turn) -> None:
    """Greedy responses by the trained weights, against those of the first row that asked for these, which are kept."""
    hour = turn.hour
    assert hour.trained is not None
    found = [text for text, _ in _responses(turn, temperature=0.0, max_tokens=hour.sizes.greedy)]
    kept = hour.greedy.setdefault(hour.trained[1], found)
    if kept is not found:
        share = statistics.mean(map(equal_share, kept, found))
        turn.figure("greedy", value=share, unit="share", baseline=1.0, against="text equal up to the first difference")


def equal_share(first: str, second: str) -> float:
    """Share of the longer of two texts that both begin with."""
    longer = max(len(first), len(second))
    differing = next((place for place, pair in enumerate(zip(first, second, strict=False)) if len({*pair}) > 1), longer)
    return min(differing, len(first), len(second)) / longer if longer else 1.0


def _responses(turn: Turn, *, temperature: float, max_tokens: int) -> list[tuple[str, int]]:
    """One response to every problem in the order of these, each with its tokens; in the row's round."""
    ports, config = turn.run.ports, dict(turn.run.recipe.explorations)[turn.round]
    config = config.model_copy(update={"temperature": temperature, "max_tokens": max_tokens})
    problems = tuple(sorted(ports.data.problem_levels()))
    explore(ports, ExploreOrder(stage=turn.stage(StageKind.EXPLORE), problem_ids=problems, config=config, seed=1))
    keys = sorted((row.key for row in ports.pool.candidates((turn.round,))), key=lambda key: key.problem_id)
    return [(row.response, row.num_tokens) for row in ports.pool.trajectories(keys)]
