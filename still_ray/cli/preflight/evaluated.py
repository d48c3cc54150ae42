"""A model and a benchmark with everything that the result of one on the other depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from still_ray.algo.placement import NOTHING_KNOWN, AtHand
from still_ray.cli.preflight.files import RunFiles
from still_ray.cli.preflight.models import model_folder
from still_ray.config import Recipe
from still_ray.formats.benchmarks import BenchmarkSource
from still_ray.formats.chat_template import ChatTemplate, EndOfTurn, end_of_turn
from still_ray.formats.problems import ProblemIndex
from still_ray.formats.prompt import chat_template_of, format_of_prompt, load_template
from still_ray.formats.responses.plain import PLAIN
from still_ray.formats.responses.table import format_named
from still_ray.formats.tokenizer import load_tokenizer
from still_ray.store.digests import Digest, model_digest, model_files_digest, text_digest


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with everything that its responses depend on.

    Attributes:
        name: What its results are called.
        backbone: Its directory, URI or hub id.
        recipe: Prompt, lengths, sampling and resources.
        at_hand: What those follow from that the recipe leaves open.
    """

    name: str
    backbone: str
    recipe: Recipe
    at_hand: AtHand = NOTHING_KNOWN

    @cached_property
    def digest(self) -> Digest | None:
        """Of its weights."""
        return model_digest(self.backbone)

    @cached_property
    def files_sha256(self) -> str | None:
        """Of what stands beside its weights: settings, tokenizer, templates."""
        return model_files_digest(model_folder(self.backbone)[0])

    @cached_property
    def chat_template_sha256(self) -> str:
        """Of its chat template's text."""
        template = self._chat.tokenizer.chat_template
        return text_digest(template if isinstance(template, str) else json.dumps(template, sort_keys=True))

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        """What ends its responses."""
        return end_of_turn(self._chat, model_folder(self.backbone)[0])

    @cached_property
    def _chat(self) -> ChatTemplate:
        folder, holds_weights = model_folder(self.backbone)
        own_code = self.recipe.model.trust_remote_code
        tokenizer = load_tokenizer(folder, trust_remote_code=own_code, weights=holds_weights)
        return chat_template_of(tokenizer, self.recipe.prompt)

    @cached_property
    def prompt_text(self) -> str:
        """Its prompt template."""
        prompt = self.recipe.prompt
        form = format_named(format_of_prompt(self._chat, prompt, default=PLAIN.name).name)
        return load_template(prompt.template, default=form.prompt).text


@dataclass(frozen=True)
class EvaluatedBenchmark:
    """A benchmark in the form that the pipeline reads.

    Attributes:
        source: Where it comes from.
        path: Its problems, a file that `still_ray.rows` reads.
        index: Ids, levels and domains.
        digest: Of the source's file; of the written problems where the source is no single file.
        written: Of the problems as they were written out; None if the source is read as it is.
        options_seed: Of the order of options; None if the source had them in order.
    """

    source: BenchmarkSource
    path: str
    index: ProblemIndex
    digest: Digest
    written: Digest | None
    options_seed: int | None

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.source.name

    def ids(self, num_problems: int | None) -> tuple[str, ...]:
        """The problems that are asked."""
        return self.index.ids[:num_problems]

    @cached_property
    def files(self) -> RunFiles:
        """Itself as the files of a run that has nothing else."""
        return RunFiles(shown=(), problems=self.index, test=self.index, num_leaked=0, seed=0)

    @cached_property
    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """Level and subject of the problems that have one, by "level" and "subject" and then by id."""
        index = self.index
        return {
            "level": {key: str(level) for key, level in zip(index.ids, index.levels, strict=True) if level is not None},
            "subject": {key: subject for key, subject in zip(index.ids, index.subjects, strict=True) if subject},
        }
