"""What every sampler can do, whatever engine is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

from still_ray.types import Completion, PartialResponse, SamplingSettings, StillRayError

WeightPayload = dict[str, Any]
"""One piece of a weight update; its key "transport" names who can read it, see `still_ray.weight_sync.transports`."""

NO_DIGESTS: Final[Mapping[str, str]] = {}
NO_WEIGHTS: Final = -1
"""The policy version of a sampler that dropped its weights when it fell asleep."""


class SamplerError(StillRayError):
    """A request that this sampler cannot serve; the sampler itself lives on."""


class SamplerDeadError(SamplerError):
    """The engine behind a sampler died: this sampler will never answer again and has to be replaced."""


@dataclass(frozen=True, kw_only=True)
class SamplerStats:
    """A sampler's load at one moment.

    Attributes:
        num_running: Requests being decoded.
        num_waiting: Requests handed in and not yet decoded.
        num_generated_tokens: Tokens of all finished requests since the sampler started.
        num_running_tokens: Tokens that the requests in flight have so far.
        num_steps: What the engine has done since the sampler started, in steps of about a token of every running
            request; while requests run, it grows.
        num_finished_early: Finished responses of a prompt of which others are not; a replica counts them, no sampler.
    """

    num_running: int
    num_waiting: int
    num_generated_tokens: int
    num_running_tokens: int
    num_steps: int
    num_finished_early: int = 0

    @property
    def num_decoded_tokens(self) -> int:
        """All tokens since the sampler started, of finished requests and of those in flight."""
        return self.num_generated_tokens + self.num_running_tokens


@dataclass(frozen=True, kw_only=True)
class SampledTokens:
    """Tokens of a response that is being decoded.

    Attributes:
        start: Tokens of the response before these.
        token_ids: The tokens.
        sum_logprob: Sum of their log-probabilities, natural log, before temperature.
    """

    start: int
    token_ids: tuple[int, ...]
    sum_logprob: float


class Sampler(Protocol):
    """Turns prompts into completions under one policy version.

    Consumes token ids, produces completions; waits for nothing but its engine. Every method may be called from any
    thread.
    """

    @property
    def name(self) -> str:
        """The replica's name, as trajectories and logs show it."""
        ...

    @property
    def policy_version(self) -> int:
        """Which weights are loaded; 0 is the backbone, `NO_WEIGHTS` none."""
        ...

    def submit(
        self, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, *, prefix: PartialResponse | None = None
    ) -> Future[Completion]:
        """Starts one response and returns at once.

        The future fails with `SamplerError` when the request is at fault, with `SamplerDeadError` when the engine is.

        Args:
            prompt_ids: The prompt.
            seed: The response's; what follows a prefix is drawn with `continuation_seed`.
            settings: How to sample; the most tokens are those of the whole response.
            prefix: The response's first tokens, sampled elsewhere under the same weights; the completion has them too.
        """
        ...

    def sampled(self, starts: Mapping[Future[Completion], int]) -> Future[dict[Future[Completion], SampledTokens]]:
        """What there is of responses that are being decoded; those that wait or are done are left out.

        Args:
            starts: How many first tokens to leave out of each; those of a prefix are left out in any case.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Natural log of p(token[i+1] | token[..i]) at every position of every sequence.

        Raises:
            SamplerError: A sequence has fewer than two tokens or is too long.
        """
        ...

    def load_weights(
        self, payloads: Iterable[WeightPayload], policy_version: int, sent: Mapping[str, str] = NO_DIGESTS
    ) -> tuple[str, ...]:
        """Replaces the weights in place, after what was submitted before and before what is submitted after.

        Args:
            payloads: The update.
            policy_version: What it brings.
            sent: Digests of its tensors as they were sent, by name; empty: nobody took them.

        Returns:
            The digest of what each rank received; see `still_ray.weight_sync.digests`. None from a fake.

        Raises:
            StillRayError: The update does not fit the model, or is not what was sent. The sampler then refuses requests
                until a complete update has been loaded.
        """
        ...

    def sleep(self, level: int) -> None:
        """Frees what it can of its device once earlier requests are done, and refuses requests until it wakes.

        Args:
            level: 1: the weights go to the host's memory; 2: they are dropped, and requests are refused until a
                complete update has been loaded. What the engine computed before is dropped by both. An engine on a CPU
                has nothing to free and keeps its weights at either level.
        """
        ...

    def wake(self) -> None:
        """Takes back what `sleep` freed; does nothing to a sampler that is awake."""
        ...

    def stats(self) -> SamplerStats:
        """The present load."""
        ...

    def close(self) -> None:
        """Ends the engine; what is still in flight fails with `SamplerDeadError`. May be called twice."""
        ...
