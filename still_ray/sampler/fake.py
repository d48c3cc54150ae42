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
from dataclasses import dataclass

from still_ray.sampler.protocol import NO_DIGESTS, SamplerDeadError, SamplerError, SamplerStats, WeightPayload
from still_ray.types import Completion, FinishReason, SamplingSettings

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
            latency_s: Seconds from submission to completion.
            policy_version: Where the versions start.
        """
        self._name = name
        self._respond = respond or table_respond({}, FakeSkill())
        self._latency_s = latency_s
        self._policy_version = policy_version
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._num_in_flight = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"fake-{name}")
        self._closed = False

    @property
    def name(self) -> str:
        """The replica's name."""
        return self._name

    @property
    def policy_version(self) -> int:
        """Which weights it pretends to hold."""
        return self._policy_version

    def submit(self, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings) -> Future[Completion]:
        """Starts one response and returns at once; see `Sampler.submit`."""
        if self._closed:
            return self._failed(SamplerDeadError(f"sampler {self._name} is closed"))
        if not prompt_ids:
            return self._failed(SamplerError(f"sampler {self._name}: the prompt is empty"))
        self._num_in_flight += 1
        submitted_at = time.monotonic()
        return self._thread.submit(self._complete, tuple(prompt_ids), seed, settings.max_tokens, submitted_at)

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

    def stats(self) -> SamplerStats:
        """The present load; nothing ever waits."""
        return SamplerStats(
            num_running=self._num_in_flight,
            num_waiting=0,
            num_generated_tokens=self._num_generated_tokens,
            num_running_tokens=0,  # a response comes whole
            num_steps=self._num_steps,
        )

    def close(self) -> None:
        """Drops what is in flight."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _complete(self, prompt_ids: tuple[int, ...], seed: int, max_tokens: int, submitted_at: float) -> Completion:
        try:
            time.sleep(max(0.0, submitted_at + self._latency_s - time.monotonic()))
            completion = self._completion(prompt_ids, seed, max_tokens, submitted_at)
        finally:
            self._num_in_flight -= 1
        self._num_generated_tokens += completion.num_tokens
        self._num_steps += 1
        return completion

    def _completion(self, prompt_ids: tuple[int, ...], seed: int, max_tokens: int, submitted_at: float) -> Completion:
        spoken = self._respond(prompt_ids, seed, self._policy_version).encode()
        token_ids = (*spoken, END_TOKEN_ID)[:max_tokens]
        return Completion(
            text=bytes(spoken[:max_tokens]).decode(errors="replace"),
            token_ids=token_ids,
            sum_logprob=sum(fake_logprobs((prompt_ids[-1], *token_ids), self._policy_version)),
            finish_reason=FinishReason.STOP if len(spoken) < max_tokens else FinishReason.LENGTH,
            latency_s=time.monotonic() - submitted_at,
        )

    def _failed(self, error: SamplerError) -> Future[Completion]:
        future: Future[Completion] = Future()
        future.set_exception(error)
        return future
