"""A sampler without a model, for rehearsals and tests: it answers from a rule, at once or after a set time.

Nothing it says was computed by a network. Its responses, log-probabilities and failures are functions of the prompt,
the seed and the policy version alone, so a rehearsal is repeatable.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from still_ray.sampler.protocol import (
    NO_DIGESTS,
    NO_WEIGHTS,
    SampledTokens,
    SamplerDeadError,
    SamplerError,
    SamplerStats,
    WeightPayload,
)
from still_ray.types import Completion, FinishReason, PartialResponse, SamplingSettings

Say = Callable[[str, str], str]
"""A response with a thought and a solution, in a response format."""
Respond = Callable[[Sequence[int], int, int], str]
"""The response's text from the prompt's token ids, the seed and the policy version."""

END_TOKEN_ID = 256
"""The fake's end token; its other tokens are the UTF-8 bytes of the text."""

_LOGPROB_FLOOR = -4.0
_CUT = 2
"""Characters that a malformed response lacks: enough for its last delimiter, or its box, not to be closed."""


@dataclass(frozen=True, kw_only=True)
class FakeSkill:
    """How good the fake's answers are.

    Attributes:
        correct: Probability of a right answer under policy version 0.
        malformed: Probability that the solution is not closed, whatever the answer.
        gain: What each policy version adds to `correct`, so that a rehearsed run improves as a real one should.
    """

    correct: float = 0.4
    malformed: float = 0.1
    gain: float = 0.1

    def correct_at(self, policy_version: int) -> float:
        """Probability of a right answer under a policy version."""
        return min(1.0, self.correct + self.gain * policy_version)


def table_respond(answers: Mapping[tuple[int, ...], str], skill: FakeSkill, *, say: Say | None = None) -> Respond:
    """A rule that looks the prompt's reference answer up and gets it right as often as `skill` says.

    Args:
        answers: Reference answer by prompt token ids; a prompt that is not in it gets a wrong answer.
        skill: How often which kind of response is given.
        say: Writes a response in the run's format; None: in markers.
    """

    def respond(prompt_ids: Sequence[int], seed: int, policy_version: int) -> str:
        draw = random.Random(f"{seed}/{policy_version}")
        answer = answers.get(tuple(prompt_ids))
        right = draw.random() < skill.correct_at(policy_version) and answer is not None
        text = well_formed(str(answer) if right else f"{answer}0", num_steps=draw.randrange(1, 6), say=say)
        return text[:-_CUT] if draw.random() < skill.malformed else text

    return respond


def well_formed(answer: str, *, num_steps: int, say: Say | None = None) -> str:
    """A response with a thought of some steps and a boxed answer; `say` as in `table_respond`."""
    thought = "\n\n".join(f"Step {step}: this is a rehearsal." for step in range(1, num_steps + 1))
    return (say or _in_markers)(thought, f"\\boxed{{{answer}}}")


def _in_markers(thought: str, solution: str) -> str:
    return (
        f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )


def fake_logprobs(token_ids: Sequence[int], policy_version: int) -> tuple[float, ...]:
    """What the fake takes for log p(token[i+1] | token[..i]); a fake trainer states the same of its probes."""
    pairs = itertools.pairwise(token_ids)
    return tuple(_LOGPROB_FLOOR * random.Random(f"{policy_version}/{a}/{b}").random() for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One response on its way."""

    prompt_ids: tuple[int, ...]
    seed: int
    max_tokens: int
    prefix: PartialResponse | None
    submitted_at: float

    @property
    def num_before(self) -> int:
        """Tokens of the prefix."""
        return self.prefix.num_tokens if self.prefix else 0


class FakeSampler:
    """A `Sampler` that answers from a rule.

    Consumes requests in order; produces each completion `latency_s` after its submission, any number at a time.
    """

    def __init__(
        self, *, name: str, respond: Respond | None = None, latency_s: float = 0.0, policy_version: int = 0
    ) -> None:
        """Ready at once.

        Args:
            name: The replica's name.
            respond: The rule; None: well-formed and malformed responses whose answers are always wrong.
            latency_s: Seconds from the first to the last token of a response; one that has a prefix takes its share.
            policy_version: Where the versions start.
        """
        self._name = name
        self._respond = respond or table_respond({}, FakeSkill())
        self._latency_s = latency_s
        self._policy_version = policy_version
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._in_flight: dict[Future[Completion], _Request] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"fake-{name}")
        self._closed = False
        self._asleep = False

    @property
    def name(self) -> str:
        """The replica's name."""
        return self._name

    @property
    def policy_version(self) -> int:
        """Which weights it pretends to hold."""
        return self._policy_version

    def submit(
        self, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, *, prefix: PartialResponse | None = None
    ) -> Future[Completion]:
        """Starts one response and returns at once; see `Sampler.submit`.

        What follows a prefix is what would have followed without a cut: the rule knows one response for each seed.
        """
        if self._closed:
            return self._failed(SamplerDeadError(f"sampler {self._name} is closed"))
        if not prompt_ids:
            return self._failed(SamplerError(f"sampler {self._name}: the prompt is empty"))
        if self._asleep or self._policy_version == NO_WEIGHTS:
            return self._failed(SamplerError(f"sampler {self._name} sleeps, or has no weights"))
        request = _Request(
            prompt_ids=tuple(prompt_ids),
            seed=seed,
            max_tokens=settings.max_tokens,
            prefix=prefix,
            submitted_at=time.monotonic(),
        )
        future = self._thread.submit(self._complete, request)
        self._in_flight[future] = request
        future.add_done_callback(self._in_flight.pop)
        return future

    def sampled(self, starts: Mapping[Future[Completion], int]) -> Future[dict[Future[Completion], SampledTokens]]:
        """What there is of responses in flight, as if the rest came at an even pace; see `Sampler.sampled`."""
        found = {}
        for future, start in starts.items():
            request = self._in_flight.get(future)
            if request is not None and (tokens := self._so_far(request, start)).token_ids:
                found[future] = tokens
        answer: Future[dict[Future[Completion], SampledTokens]] = Future()
        answer.set_result(found)
        return answer

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Invented log-probabilities, `fake_logprobs` of each sequence."""
        return [fake_logprobs(sequence, self._policy_version) for sequence in sequences]

    def load_weights(
        self, payloads: Iterable[WeightPayload], policy_version: int, sent: Mapping[str, str] = NO_DIGESTS
    ) -> tuple[str, ...]:
        """Reads the payloads, keeps nothing of them, and takes the new version when earlier requests are done."""

        def update() -> None:
            for _ in payloads:
                pass
            self._policy_version = policy_version

        self._thread.submit(update).result()
        return ()

    def sleep(self, level: int) -> None:
        """Refuses requests from here on; at level 2 until new weights have come, as an engine on a GPU does."""

        def fall_asleep() -> None:
            self._asleep = True
            self._policy_version = self._policy_version if level == 1 else NO_WEIGHTS

        self._thread.submit(fall_asleep).result()

    def wake(self) -> None:
        """Takes requests again, if it has weights."""
        self._asleep = False

    def stats(self) -> SamplerStats:
        """The present load; nothing ever waits."""
        return SamplerStats(
            num_running=len(self._in_flight),
            num_waiting=0,
            num_generated_tokens=self._num_generated_tokens,
            num_running_tokens=0,  # a response comes whole
            num_steps=self._num_steps,
        )

    def close(self) -> None:
        """Drops what is in flight."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _complete(self, request: _Request) -> Completion:
        whole = self._completion(request)
        share = 1 - request.num_before / whole.num_tokens
        time.sleep(max(0.0, request.submitted_at + share * self._latency_s - time.monotonic()))
        self._num_generated_tokens += whole.num_tokens - request.num_before
        self._num_steps += 1
        before_s = request.prefix.latency_s if request.prefix else 0.0
        return replace(whole, latency_s=before_s + time.monotonic() - request.submitted_at)

    def _completion(self, request: _Request) -> Completion:
        spoken = self._respond(request.prompt_ids, request.seed, self._policy_version).encode()
        token_ids = (*spoken, END_TOKEN_ID)[: request.max_tokens]
        return Completion(
            text=bytes(spoken[: request.max_tokens]).decode(errors="replace"),
            token_ids=token_ids,
            sum_logprob=sum(self._logprobs(request, token_ids)),
            finish_reason=FinishReason.STOP if len(spoken) < request.max_tokens else FinishReason.LENGTH,
            latency_s=0.0,
        )

    def _so_far(self, request: _Request, start: int) -> SampledTokens:
        whole = self._completion(request)
        start = max(start, request.num_before)
        num_new = int((time.monotonic() - request.submitted_at) / max(self._latency_s, 1e-9) * whole.num_tokens)
        end = min(request.num_before + num_new, whole.num_tokens - 1)
        logprobs = self._logprobs(request, whole.token_ids)[start:end]
        return SampledTokens(start=start, token_ids=whole.token_ids[start:end], sum_logprob=sum(logprobs))

    def _logprobs(self, request: _Request, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        return fake_logprobs((request.prompt_ids[-1], *token_ids), self._policy_version)

    def _failed(self, error: SamplerError) -> Future[Completion]:
        future: Future[Completion] = Future()
        future.set_exception(error)
        return future
