"""The rollout pipeline on real Ray actors with fake engines: replicas join late, hang, and are slow.

Every request must be judged once, whatever they do.
"""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from still_ray.actors.launcher import engine_of
from still_ray.actors.pool.actor_pool import ActorPool, PoolCounts, replaced_names
from still_ray.actors.rehearsal.replica import ByteRenderer, FakeReplica, FakeReplicaSettings
from still_ray.actors.sampling.problems import stream_problems
from still_ray.actors.sampling.replica import GenerationStatus, ReplicaSettings, SamplerReplica
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.exploration import rollout_request
from still_ray.algo.partial_responses import PartialResponses
from still_ray.algo.placement import resolve
from still_ray.config import ExploreConfig, SyncConfig
from still_ray.driver.ports import SamplingLoad
from still_ray.formats.problems import read_problems
from still_ray.formats.prompt import load_template
from still_ray.formats.responses.markers import MARKED
from still_ray.sampler.fake import END_TOKEN_ID, FakeSampler, FakeSkill, fake_logprobs, table_respond
from still_ray.sampler.protocol import SamplerStats
from still_ray.store.policy import PolicyRecord, write_policy_record
from still_ray.types import (
    Completion,
    Judgement,
    ProbeSequence,
    Rollout,
    RolloutRequest,
    RunError,
    TrainResult,
    Trajectory,
    Verdict,
    judged,
)
from tests.fakes import make_problem, make_recipe

pytestmark = pytest.mark.integration

DEADLINE_S = 60.0
"""Of the tests themselves."""
LATENCY_S = {"decodes": 8.0}
"""Of a response, by the replica's part."""
RECIPE = make_recipe()
SETTLED = resolve(RECIPE, has_gpus=False)


class StragglingSampler(FakeSampler):
    """Of the first problem that it is given, the first response comes only once a file is there."""

    def __init__(self, name: str, released: Path) -> None:
        super().__init__(name=name, policy_version=1)
        self._released = released
        self._straggler: Future[Completion] | None = None

    def submit(self, *arguments: Any, **options: Any) -> Future[Completion]:
        if self._straggler is not None:
            answered: Future[Completion] = super().submit(*arguments, **options)
            return answered
        self._straggler = ThreadPoolExecutor(1).submit(self._late, *arguments)
        return self._straggler

    def _late(self, *arguments: Any) -> Completion:
        until(self._released.exists)
        completion: Completion = super().submit(*arguments).result()
        return completion


class Replica(FakeReplica):
    """A fake replica that does what its part says; the parts speak with the test through files."""

    def __init__(self, settings: FakeReplicaSettings, part: str, folder: Path) -> None:
        super().__init__(settings)
        self._part = part
        self._folder = folder
        self._num_looks = 0
        self._num_slow = 0
        if part == "straggles":
            self._sampler = StragglingSampler(settings.engine.name, folder / "released")

    async def ready(self) -> int:
        if self._part.startswith("joins"):
            await asyncio.to_thread(until, (self._folder / "may-come-up").exists)
        return await super().ready()

    def _load(self, policy_version: int, *arguments: Any) -> tuple[str, str]:
        if self._part.startswith("joins"):
            (self._folder / "loading").touch()
            until((self._folder / "may-end-loading").exists)
        if self._part == "joins and dies":
            os._exit(1)
        return super()._load(policy_version, *arguments)

    async def stats(self) -> SamplerStats:
        self._num_looks += self._part == "slow"
        slow = {"num_running": self._num_slow} if self._part == "slow" else {}
        looks = {"num_steps": self._num_looks, "num_running_tokens": 7 * self._num_looks}
        return replace(await super().stats(), **looks, **slow)

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    async def generate(self, request: RolloutRequest) -> tuple[GenerationStatus, list[Rollout]]:
        if self._part == "engine hangs":
            await asyncio.sleep(1000)
        if self._part == "decodes":
            (self._folder / f"pid-{os.getpid()}").touch()
        if self._part == "process hangs":
            if not (self._folder / "pid").exists():  # a stop may reach this thread after the next request did
                (self._folder / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._part == "slow":
            self._num_slow += 1
            await asyncio.sleep(2.5)
            self._num_slow -= 1
        generated: tuple[GenerationStatus, list[Rollout]] = await super().generate(request)
        return generated


class Judge:
    """A fake verifier: everything is correct."""

    async def ready(self) -> None:
        """At once."""

    async def judge(self, rollouts: list[Rollout]) -> list[Trajectory]:
        verdict = Judgement(verdict=Verdict.CORRECT)
        return [judged(rollout, verdict, created_at="now") for rollout in rollouts]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class World:
    """Replicas of version 1, one of which may have been launched before there was one, and a pipeline over them."""

    def __init__(self, folder: Path, parts: Sequence[str], *, replica_timeout_s: float | None = None) -> None:
        self.folder = folder
        self.parts = dict(zip(("replica-0", "replica-1"), parts, strict=True))
        self.notes: list[str] = []
        self.counts = PoolCounts()
        self.rows: list[Trajectory] = []
        self.policy = CurrentPolicy(0, "/nothing")
        self.doings: list[str] = []
        self.loads: list[SamplingLoad] = []
        self.partials = PartialResponses()
        self.replicas = ActorPool(
            "replica",
            self._replica,
            size=2,
            min_ready=1,
            max_restarts=1,
            note=self.notes.append,
            on_change=lambda _, counts: setattr(self, "counts", counts),
        )
        self.judges = ActorPool("verifier", lambda name: ray.remote(Judge).remote(), size=1, max_restarts=0)
        self.judges.resume()
        self.sync = PolicySync(
            self.replicas,
            self.policy,
            SyncConfig(transport="checkpoint", timeout_s=30.0),
            tolerance=1e-6,
            published=lambda: None,
        )
        self.replicas.resume()  # before there is a version 1
        self.sync.sync(1, str(self.checkpoint(1)))
        self.pipeline = RolloutPipeline(
            samplers=self.replicas,
            verifiers=self.judges,
            max_in_flight=2,
            max_attempts=3,
            admission=self.sync,
            replica_timeout_s=replica_timeout_s,
            doing=self.doings.append,
        )

    def run(
        self,
        requests: Generator[RolloutRequest],
        on_rows: Callable[[], None] = lambda: None,
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        def take(rows: Sequence[Trajectory]) -> None:
            self.rows += rows
            on_rows()

        def look(load: SamplingLoad) -> None:
            self.loads.append(load)
            on_load()

        self.pipeline.run(requests, take, name="test", on_load=look, partials=self.partials)
        keys = Counter(row.key for row in self.rows)
        assert set(keys.values()) == {1}
        assert sorted(key.problem_id for key in keys) == sorted(f"p{number}" for number in range(len(keys)))
        assert {row.policy_version for row in self.rows} == {1}

    def samplers(self) -> set[str]:
        return {row.sampler for row in self.rows}

    def close(self) -> None:
        self.replicas.release()
        self.judges.release()

    def _replica(self, name: str) -> Any:
        settings = FakeReplicaSettings(
            engine=engine_of(SETTLED, name, self.policy),
            prompt=RECIPE.prompt,
            answers={},
            skill=FakeSkill(),
            latency_s=LATENCY_S.get(self.parts.get(name, ""), 0.02),
        )
        actor = ray.remote(Replica).options(num_cpus=1, max_concurrency=100)
        return actor.remote(settings, self.parts.get(name, ""), self.folder)

    def checkpoint(self, version: int) -> Path:
        """A checkpoint without weights, with the record that proves them."""
        ids = (3, 1, 4, 1, 5)
        result = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.0, seconds=1.0)
        probe = ProbeSequence(token_ids=ids, logprobs=fake_logprobs(ids, version))
        folder = self.folder / f"version-{version}"
        folder.mkdir()
        write_policy_record(folder, PolicyRecord(policy_version=version, stage="s", result=result, probes=(probe,)))
        return folder

    def served(self) -> dict[str, int]:
        """The version that each replica that may be asked says it serves."""
        members = {name: self.replicas.member(name) for name in self.replicas.loads()}
        return {name: ray.get(member.handle.ready.remote()) for name, member in members.items() if member}


def sampled_twice(num_problems: int) -> Generator[RolloutRequest]:
    """Two samples of each problem."""
    for number in range(num_problems):
        config = ExploreConfig(samples_per_problem=2)
        request = rollout_request(make_problem(f"p{number}"), config, (0, 1), seed=1, round_number=1)
        assert request is not None
        yield request


@pytest.mark.usefixtures("_cluster")
def test_a_response_that_takes_long_holds_no_room_but_its_own(tmp_path: Path) -> None:
    """Of the two that a replica may have in flight, the other place is used by one problem after another."""
    world = World(tmp_path, ["straggles", "straggles"])
    rows: list[Trajectory] = []

    def take(fresh: Sequence[Trajectory]) -> None:
        rows.extend(fresh)
        if len(rows) == 2 * (12 - 2):  # all but the problems of the two stragglers
            (tmp_path / "released").touch()

    world.pipeline.run(sampled_twice(12), take, name="test")
    world.close()
    assert Counter(row.key.problem_id for row in rows) == {f"p{number}": 2 for number in range(12)}


def requests(wanted: Callable[[int], bool]) -> Generator[RolloutRequest]:
    """One sample of one problem after another, as long as more are wanted."""
    number = 0
    while wanted(number):
        config = ExploreConfig(samples_per_problem=1)
        request = rollout_request(make_problem(f"p{number}"), config, (0,), seed=1, round_number=1)
        assert request is not None
        yield request
        number += 1


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize(("part", "last"), [("joins", "replica-1"), ("joins and dies", "replica-2")])
def test_the_others_go_on_while_a_replica_joins(tmp_path: Path, part: str, last: str) -> None:
    world = World(tmp_path, ["", part])
    while_loading: list[int] = []

    def direct() -> None:
        (tmp_path / "may-come-up").touch()
        if (tmp_path / "loading").exists():
            while_loading.append(len(world.rows))
        if len(while_loading) == 10:
            assert world.samplers() == {"replica-0"}
            (tmp_path / "may-end-loading").touch()

    deadline = time.monotonic() + DEADLINE_S
    world.run(requests(lambda _: last not in world.samplers() and time.monotonic() < deadline), direct)
    world.close()
    assert len(while_loading) > 10 and world.samplers() == {"replica-0", last}
    assert world.counts.num_died == (part == "joins and dies")


@pytest.mark.usefixtures("_cluster")
def test_a_pass_ends_without_a_replica_that_still_joins_and_the_next_sync_brings_it(tmp_path: Path) -> None:
    world = World(tmp_path, ["", "joins"])

    def direct() -> None:
        (tmp_path / "may-come-up").touch()

    world.run(requests(lambda _: not (tmp_path / "loading").exists()), direct)
    assert world.samplers() == {"replica-0"} and set(world.replicas.loads()) == {"replica-0"}
    (tmp_path / "may-end-loading").touch()
    assert world.sync.sync(2, str(world.checkpoint(2))).num_replicas == 2
    assert world.served() == {"replica-0": 2, "replica-1": 2}
    world.close()


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("part", ["engine hangs", "process hangs"])
def test_a_replica_that_hangs_is_replaced_and_its_requests_go_elsewhere(tmp_path: Path, part: str) -> None:
    world = World(tmp_path, ["", part], replica_timeout_s=2.0)
    until(lambda: world.replicas.member("replica-1") and ray.wait([ray_ready(world, "replica-1")], timeout=0)[0])
    world.run(requests(lambda number: number < 30))
    assert "replica-1" not in world.samplers() and world.counts.num_died == 1
    assert world.notes == [
        "replica-1 hangs: no progress for 2 s (failures.replica_timeout_s); replica-2 takes its place"
    ]
    assert replaced_names(world.notes[0]) == ("replica-1", "replica-2") and replaced_names("replica-1 is up") is None
    if part == "process hangs":
        pid = int((tmp_path / "pid").read_text())
        until(lambda: not Path(f"/proc/{pid}").exists())
    world.close()


@pytest.mark.usefixtures("_cluster")
def test_a_response_whose_replica_dies_goes_on_from_its_tokens_elsewhere(tmp_path: Path) -> None:
    """A fake's response is the same with and without a cut, so the joint must be exact."""
    world = World(tmp_path, ["decodes", "decodes"])
    until(lambda: all(ray.wait([ray_ready(world, f"replica-{number}")], timeout=0)[0] for number in range(2)))
    killed: list[int] = []

    def kill_one() -> None:
        if not killed and any(part.num_tokens > 30 for part in world.partials.all()):
            killed.append(int(next(tmp_path.glob("pid-*")).name.removeprefix("pid-")))
            os.kill(killed[0], signal.SIGKILL)

    world.run(requests(lambda number: number < 2), on_load=kill_one)
    world.close()
    cut = [row for row in world.rows if row.continued_at]
    assert cut and all(30 < int(row.continued_at) < row.num_tokens for row in cut)
    for row in world.rows:
        prompt = ByteRenderer(load_template(None, default=MARKED.prompt), MARKED).prompt_ids(row.question)
        assert row.response == table_respond({}, FakeSkill(), say=MARKED.render)(prompt, row.seed, 1)
        logprobs = fake_logprobs((*prompt, *row.response.encode(), END_TOKEN_ID), 1)[-row.num_tokens :]
        assert row.mean_logprob == pytest.approx(sum(logprobs) / row.num_tokens)
    assert world.partials.all() == [], "what is judged is forgotten"


def ray_ready(world: World, name: str) -> ray.ObjectRef:
    member = world.replicas.member(name)
    assert member is not None
    return member.ready_ref


@pytest.mark.usefixtures("_cluster")
def test_a_replica_that_takes_long_and_makes_steps_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path, ["", "slow"], replica_timeout_s=1.0)
    until(lambda: ray.wait([ray_ready(world, "replica-1")], timeout=0)[0])
    world.run(requests(lambda number: number < 20))
    world.close()
    assert world.samplers() == {"replica-0", "replica-1"}
    assert world.notes == [] and world.counts.num_died == 0
    assert "sampling" in world.doings
    assert any(load.num_running and load.num_tokens for load in world.loads), "of responses that are not finished too"


class Refuses(FakeReplica):
    """Raises at its start what its part says, or its process ends there; without a part it comes up."""

    def __init__(self, settings: FakeReplicaSettings, part: str) -> None:
        if part == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        self._part = part
        SamplerReplica.__init__(self, settings)

    def _start(self, settings: ReplicaSettings) -> None:
        assert isinstance(settings, FakeReplicaSettings)
        if self._part == "as a peer dies":
            raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
        if self._part == "no memory":
            free = time.monotonic()  # another amount each time
            raise ValueError(f"Free memory on device cuda:0 ({free}/79.1 GiB) on startup is less than desired")
        if self._part:
            raise ValueError("Model architectures ['None'] are not supported\nfor now.")
        FakeReplica.__init__(self, settings)


def refusing_pool(
    *parts: str,
    note: Callable[[str], None] = lambda text: None,
    launched: list[str] | None = None,
    max_restarts: int = 2,
) -> ActorPool:
    """Two replicas at a time, of which the last part is everyone's who comes later.

    Names of replicas that are launched go to `launched`.
    """

    def launch(name: str) -> Any:
        if launched is not None:
            launched.append(name)
        settings = FakeReplicaSettings(
            engine=engine_of(SETTLED, name, CurrentPolicy(0, "/nothing")),
            prompt=RECIPE.prompt,
            answers={},
            skill=FakeSkill(),
            latency_s=0.02,
        )
        number = int(name.rpartition("-")[2])
        actor = ray.remote(Refuses).options(num_cpus=1)
        return actor.remote(settings, parts[min(number, len(parts) - 1)])

    pool = ActorPool("replica", launch, size=2, max_restarts=max_restarts, note=note)
    pool.resume()
    return pool


@pytest.mark.usefixtures("_cluster")
def test_what_a_replica_raises_at_its_start_ends_the_run_and_is_not_tried_again() -> None:
    pool = refusing_pool("raises")
    with pytest.raises(RunError) as failure:
        pool.wait_ready()
    assert {member.name for member in pool.members()} == {"replica-0", "replica-1"}, "none was launched after them"
    pool.release()
    reason = "cannot start: vLLM does not know the architecture 'None': give another model.path"
    assert str(failure.value) in {f"replica-{number} {reason}" for number in range(2)}


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("part", ["killed", "as a peer dies"])
def test_a_start_that_fails_by_bad_luck_is_tried_again_as_often_as_the_budget_says(part: str) -> None:
    launched: list[str] = []
    pool = refusing_pool(part, launched=launched)
    with pytest.raises(RunError, match=r" and failures.max_replica_restarts \(2\) is used up: ") as failure:
        pool.wait_ready()
    assert launched == [f"replica-{number}" for number in range(4)], "two were replaced"
    pool.release()
    assert ("died at its start and" if part == "killed" else "Connection closed by peer") in str(failure.value)


@pytest.mark.usefixtures("_cluster")
def test_a_start_that_fails_alike_three_times_in_its_place_is_not_tried_a_fourth_time() -> None:
    notes: list[str] = []
    pool = refusing_pool("", "no memory", note=notes.append, max_restarts=8)
    with pytest.raises(RunError, match=r"^replica-3 cannot start, as the 2 before it: .* sampler.gpu_memory_utiliz"):
        pool.wait_ready()
    pool.release()
    told = re.compile(
        r"replica-(\d) cannot start: \S+ of 79.1 GiB are free on device cuda:0 .*; replica-(\d) takes its place"
    )
    assert [match.groups() for note in notes if (match := told.fullmatch(note))] == [("1", "2"), ("2", "3")]


@pytest.mark.usefixtures("_cluster")
def test_where_others_came_up_a_replica_that_cannot_start_is_replaced_and_its_reason_told() -> None:
    notes: list[str] = []
    pool = refusing_pool("", "raises", "", note=notes.append)
    until(lambda: ray.wait([member.ready_ref for member in pool.members()], num_returns=2, timeout=0)[0])
    pool.settle("replica-0")
    pool.wait_ready()
    assert set(pool.loads()) == {"replica-0", "replica-2"}
    assert notes == [
        "replica-1 cannot start: vLLM does not know the architecture 'None': give another model.path; replica-2 takes "
        "its place"
    ]
    pool.release()


@pytest.mark.usefixtures("_cluster")
def test_problems_are_streamed_as_they_were_validated_from_a_file_of_any_form(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "problem": f"P{n}", "answer": 1e-05 if n == 2 else "1"} for n in range(60)]
    array, packed = tmp_path / "p.json", tmp_path / "p.csv.gz"
    array.write_bytes(codecs.BOM_UTF8 + json.dumps(rows).encode())
    lines = ["id,problem,answer", *(f"{row['id']},{row['problem']},{row['answer']}" for row in rows)]
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    for path in (array, packed):
        wanted = [f"p{n}" for n in range(0, 60, 2)]
        streamed = list(stream_problems(str(path), ids=wanted, batch_size=7, name="test"))
        assert streamed == [problem for problem in read_problems(path) if problem.id in wanted]
    assert streamed[1].id == "p2"


@pytest.mark.usefixtures("_cluster")
def test_a_large_file_of_problems_is_read_by_several_tasks_and_gives_the_same_problems_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"p{n}", "problem": f"P{n} " + "é" * (n % 50), "answer": str(n)} for n in range(300)]
    lines, table = tmp_path / "p.jsonl", tmp_path / "p.parquet"
    lines.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in [*rows, rows[7]]), encoding="utf-8"
    )
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=40)
    read_by: list[int] = []
    from_items = ray.data.from_items

    def counted(items: list[Any], **options: Any) -> Any:
        read_by.append(len(items))
        return from_items(items, **options)

    monkeypatch.setattr(ray.data, "from_items", counted)
    monkeypatch.setattr("still_ray.actors.sampling.problems.PIECE_BYTES", 2000)
    for path in (lines, table):
        wanted = [f"p{n}" for n in range(300) if n % 3]
        streamed = list(stream_problems(str(path), ids=wanted, batch_size=16, name="test"))
        assert streamed == [problem for problem in read_problems(path) if problem.id in wanted]
    assert read_by[0] > 10 and read_by[1] == 8
