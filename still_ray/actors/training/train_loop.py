"""What every rank of the trainer group runs: take an order, train, save, publish, and wait for the next.

consumes     orders from the mailbox; the tables of their rows
produces     an HF checkpoint whose policy record is its last file; weights, by the recipe's transport
waits for    the mailbox
unblocked by an order, or by None, which ends the loop
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from still_ray.actors.pool.causes import cause_of
from still_ray.actors.training.rank_links import RankLinks, links_of, stage_cost
from still_ray.actors.training.transfers import RankLine
from still_ray.algo.devices import Devices, own_gpu, visible_index
from still_ray.algo.resolved import ResolvedTrainer
from still_ray.causes import Place, may_pass
from still_ray.config import PromptConfig, SyncConfig
from still_ray.config.library_arguments import used_settings
from still_ray.config.methods import method_named
from still_ray.driver.ports import TrainOrder
from still_ray.formats.chat_template import end_of_turn
from still_ray.formats.prompt import ChatRenderer, write_prompt_beside_model
from still_ray.formats.tokenizer import load_tokenizer
from still_ray.location import location
from still_ray.store.atomic import is_refused
from still_ray.store.cache import local_model
from still_ray.store.policy import PolicyRecord, read_policy_record
from still_ray.store.retry import with_retries
from still_ray.store.staging import discard_finished, staging_of
from still_ray.store.tables import iter_table
from still_ray.types import Event, InputError, RunError, TrainProgress, Turn
from still_ray.weight_sync.transports import transport_named
from still_ray.weight_sync.transports.exchange import PublishedWeights, TrainedWeights, TransferOrder

if TYPE_CHECKING:
    from still_ray.trainer.data import TokenizedRow
    from still_ray.trainer.job import TrainJob, TrainOutcome
    from still_ray.trainer.worker import TrainerWorker

_TORCH_WRITE = "PytorchStreamWriter"
"""In the RuntimeError that torch raises when a file cannot be written; it does not keep the number of the error."""
PROBE_TOKENS = 256
"""Most tokens of a probe sequence."""


@dataclass(frozen=True, kw_only=True)
class TrainLoopSettings:
    """What a worker needs besides its orders.

    Attributes:
        trainer: The trainer group's section of the recipe.
        sync: Transport, bucket size and number of probes.
        prompt: The user turn.
        max_probe_tokens: Longest probe sequence; shorter than the samplers' model length.
        trust_remote_code: As in the recipe.
        mailbox: Handle of the mailbox actor.
        run: The recipe's name, for experiment trackers.
        tracker_dir: Folder that these write to.
        devices: What the ranks work on although replicas hold it; none: what Ray gives them.
        lets_go: Whether ranks keep nothing of a stage on their devices once it is over, since engines wake there.
    """

    trainer: ResolvedTrainer
    sync: SyncConfig
    prompt: PromptConfig
    max_probe_tokens: int
    trust_remote_code: bool
    mailbox: Any = None
    run: str = ""
    tracker_dir: str = ""
    devices: Devices = ()
    lets_go: bool = False


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    settings: TrainLoopSettings = config["settings"]
    if settings.devices:
        _take_device(settings.devices)
    from still_ray.trainer.worker import TrainerWorker

    rank = ray.train.get_context().get_world_rank()
    worker = TrainerWorker(settings.trainer)
    group = _registered(settings.mailbox)
    links = links_of(settings.trainer)
    if links is not None and rank == 0:
        ray.get([settings.mailbox.note.remote(group, text) for text in links.notes])
    done, held = 0, -1
    while (received := _agreed_order(settings.mailbox, done)) is not None:
        done, order = received
        if isinstance(order, TransferOrder):
            _transfer(settings, worker, rank, done, order, held=held)
        else:
            trained = _Stage(settings, worker, rank, order, group=group, links=links).run()
            held = order.stage.policy_version if trained and not settings.lets_go else -1
    worker.release()


def _take_device(devices: Devices) -> None:
    """Works on the device that is meant for this rank, of all that its machine has: Ray gave it none.

    Ray Train has told the libraries the rank's place on its machine, and that there is no GPU.
    """
    import torch

    context = ray.train.get_context()
    gpu = own_gpu(devices, ray.get_runtime_context().get_node_id(), context.get_local_rank())
    index = visible_index(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    os.environ |= {"LOCAL_RANK": str(index), "ACCELERATE_TORCH_DEVICE": f"cuda:{index}"}
    torch.cuda.set_device(index)


def _registered(mailbox: Any) -> int:
    """The number of this worker group, the same on every rank."""
    from still_ray.trainer.ranks import from_first

    return from_first(lambda: int(ray.get(mailbox.register.remote(ray.get_runtime_context().get_actor_id()))))


def _agreed_order(mailbox: Any, done: int) -> tuple[int, TrainOrder | TransferOrder] | None:
    """The next order, the same on every rank: one that was called off may have reached some of them only."""
    import torch.distributed as dist

    received = ray.get(mailbox.next_order.remote(done))
    number = received[0] if received else None
    seen: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, number)
    if None in seen:
        return None
    agreed: tuple[int, TrainOrder | TransferOrder] | None = received
    return agreed if len(set(seen)) == 1 else ray.get(mailbox.newest_order.remote())


def _transfer(
    settings: TrainLoopSettings, worker: TrainerWorker, rank: int, number: int, order: TransferOrder, *, held: int
) -> None:
    """Sends the trained weights to the replicas, if this group still holds them."""
    line = RankLine(settings.mailbox, number)
    if held == order.policy_version:
        transport_named(settings.sync.transport).send(worker.model, order, line, leads=rank == 0)
    elif rank == 0:
        line.ended(f"the trainer does not hold version {order.policy_version} any more")


class _Stage:
    """One order on one rank; every rank does the same, rank 0 also reports."""

    def __init__(
        self,
        settings: TrainLoopSettings,
        worker: TrainerWorker,
        rank: int,
        order: TrainOrder,
        *,
        group: int,
        links: RankLinks | None = None,
    ) -> None:
        self._group = group
        self._links = links
        self._settings = settings
        self._worker = worker
        self._leads = rank == 0
        self._order = order
        self._num_control = 0
        self._init_model = local_model(order.init_model)
        self._reference_model = local_model(order.reference_model) if order.reference_model else ""
        self._staging = staging_of(order.checkpoint, rank)

    def run(self) -> bool:
        """Carries the order out; returns whether the worker now holds the weights that it asked for."""
        from still_ray.trainer.ranks import from_first, on_every_rank

        discard_finished(self._order.checkpoint)
        # Read now: when the training ends the store may be out of reach, and the checkpoint must be kept all the same.
        identity = from_first(lambda: with_retries(self._identity))
        if self._was_completed() or self._was_kept(identity):
            self._staging.close()
            return False
        try:
            found = on_every_rank(lambda: list(self._rows()))
            rows = [row for row in found if row is not None]
            self._num_control = len(found) - len(rows)
            self._tell_cost(rows)
            outcome = self._worker.train(self._job(rows), rows, on_progress=self._report, states=self._staging.states)
        except Exception as error:
            if not is_lasting(error):
                raise
            self._fail(f"it cannot be trained: {_reason(error, place_of(self._order))}")
            self._staging.close()
            return False
        weights, held = self._publish(is_offered=not outcome.refusal)
        if self._settings.lets_go:  # on every rank before the first says that the stage is over
            on_every_rank(self._worker.release)
        if self._leads:
            self._deliver(outcome, self._record(outcome, held), weights, identity)
        self._staging.close()
        return not outcome.refusal

    def _deliver(
        self, outcome: TrainOutcome, record: PolicyRecord, weights: PublishedWeights | None, identity: str
    ) -> None:
        """Puts what was trained in its place and says so, or keeps it on this machine; for rank 0."""
        if outcome.refusal:
            self._keep_aside(outcome.refusal, record, identity, is_there=True)
            return
        try:
            self._write_prompt(self._staging.folder)
            self._staging.keep(record, identity)
        except OSError as error:
            self._keep_aside(f"{self._staging.folder}: {cause_of(error)}", record, identity, is_there=False)
            return
        self._complete(record, weights, identity)

    def _keep_aside(self, refusal: str, record: PolicyRecord, identity: str, *, is_there: bool) -> None:
        """Ends the run with a checkpoint that its file system does not take, and keeps it elsewhere; for rank 0."""
        if self._staging.spare is None:
            self._fail(refusal)
            return
        try:
            self._staging.keep_aside(record, identity, is_there=is_there)
            self._write_prompt(self._staging.spare)
        except (RunError, OSError) as error:
            self._fail(f"{refusal}; {error}")
        else:
            self._fail(f"{refusal}; {self._staging.whereabouts}")

    def _was_completed(self) -> bool:
        """Whether a group before this one had completed the checkpoint and died before it could say so.

        Rank 0 looks for all, since a shared file system may show others less.
        """
        from still_ray.trainer.ranks import from_first

        record = from_first(lambda: with_retries(lambda: read_policy_record(self._order.checkpoint)))
        if record is not None and self._leads:
            ray.get(self._settings.mailbox.finish.remote(self._group, record, None))
        return record is not None

    def _was_kept(self, identity: str) -> bool:
        """Whether the order was trained before and its checkpoint only has to be stored, which rank 0 does."""
        from still_ray.trainer.ranks import from_first

        record = from_first(lambda: self._staging.kept(identity))  # the upload is not the others' to wait for
        if record is not None and self._leads:
            self._complete(record, None, identity)
        return record is not None

    def _complete(self, record: PolicyRecord, weights: PublishedWeights | None, identity: str) -> None:
        """Puts the checkpoint in its place and says so; for rank 0."""
        try:
            left_over = self._staging.publish(record)
        except RunError as error:  # named policy: the run ends, and what was trained waits for the next one
            if self._staging.is_kept:
                self._fail(f"{error}; {self._staging.whereabouts}")
            else:
                self._keep_aside(str(error), record, identity, is_there=False)
            return
        if left_over:
            ray.get(self._settings.mailbox.note.remote(self._group, left_over))
        ray.get(self._settings.mailbox.finish.remote(self._group, record, weights))

    def _fail(self, failure: str) -> None:
        ray.get(self._settings.mailbox.fail.remote(self._group, failure))

    def _identity(self) -> str:
        """Tells a checkpoint that was kept by this order from one of another: same settings, same start, same rows."""
        facts = {
            "stage": asdict(self._order.stage),
            "settings": used_settings(self._order.settings.model_dump(mode="json")),
            "init_model": self._order.init_model,
            **({"reference_model": self._order.reference_model} if self._order.reference_model else {}),
            **({"lora": lora.model_dump(mode="json")} if (lora := self._settings.trainer.lora) else {}),
            "seed": self._order.seed,
            "data": hashlib.sha256(location(self._order.data_path).read_bytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _rows(self) -> Iterator[TokenizedRow | None]:
        """The stage's table as token ids; None for a row that holds a control token of the model as text."""
        from still_ray.trainer.job import training_of

        method = method_named(self._order.method)
        training = training_of(method.trainer, self._order.settings)
        tokenize = ResponseTokenizer(self._renderer, whole=self._order.settings.scope == "whole")
        table: Iterable[Any] = iter_table(location(self._order.data_path), method.record)
        return (training.tokenized(row, tokenize) for row in table)

    @cached_property
    def _renderer(self) -> ChatRenderer:
        tokenizer = load_tokenizer(self._init_model, trust_remote_code=self._settings.trust_remote_code)
        return ChatRenderer.of(tokenizer, self._settings.prompt)

    def _write_prompt(self, folder: Path) -> None:
        write_prompt_beside_model(folder, self._renderer, self._settings.prompt)

    def _job(self, rows: Sequence[TokenizedRow]) -> TrainJob:
        from still_ray.trainer.job import TrainJob

        method = method_named(self._order.method)
        return TrainJob(
            name=self._order.stage.name,
            model_path=self._init_model,
            model_name=self._order.init_model,
            output_dir=str(self._staging.folder),
            method=self._order.stage.method,
            training_path=method.trainer,
            num_sequences=method.num_sequences,
            settings=self._order.settings,
            trainer=self._settings.trainer.asked,
            seed=self._order.seed,
            trust_remote_code=self._settings.trust_remote_code,
            run=self._settings.run,
            tracker_dir=self._settings.tracker_dir,
            stop_token_ids=end_of_turn(self._renderer.chat, self._init_model).stop_token_ids,
            reference_path=self._reference_model,
            reference_name=self._order.reference_model,
            spare_dir=str(self._staging.spare or ""),
            probe_sequences=self._probe_sequences(rows),
        )

    def _probe_sequences(self, rows: Sequence[TokenizedRow]) -> tuple[tuple[int, ...], ...]:
        """The beginnings of the first training rows: new weights move what was trained on."""
        chosen, limit = rows[: self._settings.sync.num_probes], self._settings.max_probe_tokens
        return tuple(row.sequence[:limit] for row in chosen)

    def _tell_cost(self, rows: Sequence[TokenizedRow]) -> None:
        """Says what gathering and reducing will take of a step, as far as the group's links tell; for rank 0."""
        if self._links is None or not self._leads or not rows:
            return
        row_tokens = sum(row.length for row in rows) / len(rows)
        settings, mailbox = self._settings, self._settings.mailbox
        events, text = stage_cost(self._links, self._order, self._init_model, settings.trainer, row_tokens=row_tokens)
        for event in events:
            mailbox.report.remote(self._group, event)
        if text:
            ray.get(mailbox.note.remote(self._group, text))

    def _report(self, progress: TrainProgress) -> None:
        if self._leads:
            self._settings.mailbox.trained.remote(self._group, progress)

    def _publish(self, *, is_offered: bool) -> tuple[PublishedWeights | None, dict[str, str]]:
        """What is offered of the trained weights, None where the replicas read the checkpoint, and their digests.

        The weights are gathered and read once for the digests, whatever the transport: every way to a replica, the
        checkpoint included, is compared with what the trainer holds in memory. Only rank 0 has digests.
        """
        from still_ray.weight_sync.digests import DigestLog
        from still_ray.weight_sync.zero_source import ZeroSource

        started = time.monotonic()
        source, log = ZeroSource(self._worker.model, keep=self._leads), DigestLog()
        sync, weights = self._settings.sync, None
        held = TrainedWeights(
            policy_version=self._order.stage.policy_version,
            source=source,
            tensors=log.noted(source),
            put=ray.put,
            bucket_bytes=sync.bucket_mib * 2**20,
        )
        if is_offered:
            weights = transport_named(sync.transport).publish(held)
        deque(held.tensors, maxlen=0)  # what the transport did not read has a digest all the same
        if self._leads:
            event = Event(
                name="sync/publish_seconds",
                value=time.monotonic() - started,
                labels={"stage": self._order.stage.name},
            )
            self._settings.mailbox.report.remote(self._group, event)
        return weights, log.digests()

    def _record(self, outcome: TrainOutcome, held: dict[str, str]) -> PolicyRecord:
        from still_ray.weight_sync.digests import saved_digests

        folder = self._staging.spare if outcome.refusal else self._staging.folder
        return PolicyRecord(
            policy_version=self._order.stage.policy_version,
            stage=self._order.stage.name,
            result=replace(outcome.result, num_control=self._num_control),
            probes=outcome.probes,
            digests=held if folder is None else saved_digests(folder, held),
        )


def is_lasting(error: Exception) -> bool:
    """Whether what was raised in a stage would be raised again: by its data, by loading a model, by a write."""
    from still_ray.trainer.job import ModelFilesError

    if isinstance(error, ModelFilesError):
        return not may_pass(error.__cause__ or error)
    return is_refused(error) or isinstance(error, InputError) or _TORCH_WRITE in str(error)


def place_of(order: TrainOrder) -> Place:
    """Where a stage that is trained fails: which keys mend that."""
    by_tokens = order.settings.micro_batch_tokens is not None
    size = "micro_batch_tokens" if by_tokens else "per_device_batch_size"
    return Place(kind="trainer", section=order.section, size_key=size)


def _reason(error: Exception, place: Place) -> str:
    """What was raised, with what it came from where that is not in it."""
    cause = error.__cause__
    if cause is None or str(cause) in str(error):
        return cause_of(error, place)
    return f"{error}: {cause_of(cause, place)}"


class ResponseTokenizer:
    """Encodes questions and what is to be learned of their responses, see `still_ray.trainer.methods.base.Tokenize`.

    Args:
        renderer: The model's.
        whole: Whether thought and solution are learned with the end of the turn, or the thought alone, which does not
            end the turn.
    """

    def __init__(self, renderer: ChatRenderer, *, whole: bool) -> None:
        self._renderer = renderer
        self._whole = whole

    def __call__(
        self, question: str, *responses: tuple[str, str], turns: Sequence[Turn] = (), general: bool = False
    ) -> tuple[tuple[int, ...], ...] | None:
        """Token ids of the prompt and of every response.

        None if a control token stands in a text, not at its end, or a part holds what would part it.
        """
        asked = self._plain(question)
        plain = [(self._plain(thought), self._plain(solution)) for thought, solution in responses]
        parts = list(chain.from_iterable(plain))
        read = [*(self._plain(turn.content) for turn in turns), asked]
        if any(map(self._renderer.held_control, [*read, *parts])) or any(map(self._renderer.form.claims, parts)):
            return None
        prompt = self._renderer.prompt_ids(asked, turns=turns, general=general)
        return (tuple(prompt), *(self._completion(*texts) for texts in plain))

    def _plain(self, text: str) -> str:
        return self._renderer.without_end(text)

    def _completion(self, thought: str, solution: str) -> tuple[int, ...]:
        form = self._renderer.form
        if not solution:  # cut off by the token limit: its thought has no end, neither its marker nor the turn's
            return tuple(self._renderer.completion_ids(form.render_cut_off(thought))[:-1])
        if self._whole or not thought:
            return tuple(self._renderer.completion_ids(form.render(thought, solution)))
        return tuple(self._renderer.completion_ids(form.render_thought(thought))[:-1])
