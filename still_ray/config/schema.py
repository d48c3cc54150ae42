"""The strict schema of a recipe.

Every field says what it means and where its default comes from: "paper" is STILL-2 (arXiv 2412.09413, its repository or
its authors' answers), "ours" a choice made here because the paper names none or the machine decides.
"""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from still_ray.config.library_arguments import DeepspeedArguments, EngineArguments, TrlArguments
from still_ray.config.names import FormatName, OwnVerifiers, PairRuleName, StrategyName
from still_ray.types import SamplingSettings
from still_ray.weight_sync.transports import canonical_name

Init = Literal["backbone", "previous"]
Scope = Literal["whole", "thought"]
Placement = Literal["dedicated", "shared", "elastic"]
Reporter = Literal["wandb", "tensorboard", "mlflow"]
Auto = Literal["auto"]
PUBLISHED_SEQUENCE: Final = 30_000
"""Longest prompt + response of a sampler, tokens. Source: paper (evaluation)."""
PUBLISHED_RESPONSE: Final = 20_000
"""Longest response, tokens. Source: paper (evaluation max_tokens)."""
PUBLISHED_ROW: Final = 20_000
"""Longest row of training, tokens. Source: a sister recipe of the paper's group."""

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _ascending(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] > ends[1]:
        raise ValueError(f"must be [least, greatest], e.g. [{ends[1]}, {ends[0]}]")
    return ends


Range = Annotated[tuple[int, int], Field(strict=False), AfterValidator(_ascending)]

_NODE_LABELS = (
    "Ray labels of the nodes that may hold these, e.g. {still-ray.io/role: sampler}; {}: any node. Source: ours."
)


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are not converted, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """The backbone that round 0 starts from."""

    path: str = Field(
        description="A HF model directory, a hub id such as Qwen/Qwen2.5-32B-Instruct (paper's backbone), "
        "or builtin:tiny, the committed backbone of the tiny world. Source: no default."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Source: ours, off for safety."
    )
    max_length: PositiveInt | Auto = Field(
        default="auto",
        description="Longest prompt + response of the samplers, tokens; auto: 30,000, or what the model was made for "
        "and a replica's KV cache holds, if that is less. Source: paper (evaluation, 30,000).",
    )

    @property
    def longest(self) -> int:
        """`max_length`, and while it is not settled the most that it can become."""
        return PUBLISHED_SEQUENCE if self.max_length == "auto" else self.max_length


class PromptConfig(Section):
    """What surrounds the question, and the form that the answer has."""

    template: str | None = Field(
        default=None,
        description="Path of a text with {question} in it, or to which the question is appended (the published prompt "
        "has no placeholder). null: the response format's own. Source: ours, in our own words.",
    )
    format: FormatName = Field(
        default="auto",
        description="How a response shows its thought; docs/formats.md describes each. markers: the paper's four; "
        "think: <think>...</think> and the like; channels: messages of gpt-oss and its like; plain: no thought, all of "
        "it is the solution. auto: what the chat template tells, markers where it tells nothing (evaluate: plain). Or "
        "one of your own: package.module:object, or an entry point of the group still_ray.formats. Source: paper "
        "(markers), else ours.",
    )
    system: str | None = Field(
        default=None,
        description="Text of a system's turn in front of every conversation; null: none, so that the chat template's "
        "own default stands. Source: ours.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Path of a Jinja file in place of the model's own chat template; checkpoints take it along. null: "
        "the model's. Source: ours.",
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Further variables of the chat template, e.g. {enable_thinking: false} or {reasoning_effort: "
        "high}; one that the template does not read is refused. Source: ours.",
    )
    date: str | None = Field(
        default=None,
        description="What a chat template that asks for the date is told, YYYY-MM-DD. null: the day on which the run "
        "starts, kept in its directory. Source: ours.",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _is_day(cls, value: Any) -> Any:
        """YAML reads a bare day as a date."""
        day = value.isoformat() if type(value) is datetime.date else value
        if isinstance(day, str):
            try:
                datetime.date.fromisoformat(day)
            except ValueError:
                raise ValueError("must be a day as YYYY-MM-DD") from None
        return day


class TinyWorldConfig(Section):
    """Generate demonstrations, problems and a held-out test set instead of reading files."""

    num_demonstrations: PositiveInt = Field(default=1000, description="Demonstrations. Source: ours.")
    num_problems: PositiveInt = Field(default=2000, description="Problems to explore. Source: ours.")
    num_test: PositiveInt = Field(default=500, description="Held-out problems. Source: ours, for +-4.4 points.")
    difficulties: tuple[int, ...] = Field(
        default=(3, 4, 5, 6, 7),
        strict=False,
        min_length=1,
        description="How many numbers a problem has, in turn; at least 3. Source: ours.",
    )


class DemonstrationsConfig(Section):
    """One of several files of demonstrations."""

    path: str = Field(description="Rows (docs/prepare.md, demonstrations). Source: no default.")
    weight: PositiveFloat = Field(
        default=1.0,
        description="How often an epoch learns each of its rows: 0.5 half of them, drawn by the seed and the same in "
        "every stage; 2.5 each twice and half of them once more. It depends on no other file. Source: ours, all once.",
    )
    general: bool = Field(
        default=False,
        description="Plain instruction data, so that the model keeps what it could: asked as it stands, without the "
        "prompt template, its answers may lack a thought, and selection takes no thought lengths from it. "
        "Source: ours.",
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+$",
        description="What its rows are called in the training set, counts and report. null: its file's name without "
        "suffix. Source: ours.",
    )

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or self.path.rstrip("/").rpartition("/")[2].partition(".")[0]


class ForgettingConfig(Section):
    """General problems that show what training costs, evaluated beside the held-out test."""

    path: str = Field(description="Problems, as `data.test`; never trained on. Source: no default.")
    num_problems: PositiveInt | None = Field(
        default=None, description="First so many of them; null: all. Source: ours (all)."
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05,
        description="An alarm is given where the accuracy is below the backbone's and the exact paired test (McNemar, "
        "or of several samples a permutation test) has at most this p-value; stages are tested apart. Source: ours.",
    )


_Demonstrations = Annotated[
    Annotated[str, Tag("<path>")] | Annotated[tuple[DemonstrationsConfig, ...], Field(min_length=1), Tag("<files>")],
    Discriminator(lambda value: "<files>" if isinstance(value, list | tuple) else "<path>"),
]
"""Told apart by what is given, so that an error names the key inside of a list."""


class DataConfig(Section):
    """Where demonstrations, problems and the held-out benchmark come from: files, or the tiny world."""

    demonstrations: _Demonstrations | None = Field(
        default=None,
        description="Rows (docs/prepare.md, demonstrations): a path, or a list of paths and of {path, weight, general, "
        "name}; docs/training.md describes mixes. Source: no default.",
    )
    problems: str | None = Field(
        default=None,
        description="Rows with a question and a reference in any of the forms of docs/prepare.md, problems. "
        "Source: no default.",
    )
    test: str | None = Field(
        default=None, description="Held-out problems, same formats; never trained on. Source: no default."
    )
    forgetting: ForgettingConfig | None = Field(
        default=None,
        description="General problems, asked as they stand, of the backbone and after every training stage: a path, or "
        "{path, num_problems, alpha}; docs/training.md, forgetting. null: none are asked. Source: ours.",
    )
    tiny_world: TinyWorldConfig | None = Field(
        default=None,
        description="Generate all three instead. Source: ours, since no data can be downloaded for a demo.",
    )
    read_batch_size: PositiveInt = Field(
        default=64, description="Problems pulled from the Ray Data pipeline at a time. Source: ours."
    )

    @field_validator("demonstrations", mode="before")
    @classmethod
    def _paths_of_a_list(cls, value: Any) -> Any:
        """A path alone in a list is a file with every default."""
        if not isinstance(value, list | tuple):
            return value
        return tuple({"path": one} if isinstance(one, str) else one for one in value)

    @field_validator("forgetting", mode="before")
    @classmethod
    def _path_of_problems(cls, value: Any) -> Any:
        """A path alone has every default."""
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        labels = [source.label for source in self.sources]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"demonstrations: two files are called {twice}; give one of them a name")
        if isinstance(self.demonstrations, tuple) and all(source.general for source in self.sources):
            raise ValueError("demonstrations: at least one file must have thoughts to imitate (general: false)")
        return self

    @property
    def sources(self) -> tuple[DemonstrationsConfig, ...]:
        """The files of demonstrations; one, under the name "", where the recipe has a path alone."""
        if isinstance(self.demonstrations, str):
            return (DemonstrationsConfig(path=self.demonstrations),)
        return self.demonstrations or ()

    @model_validator(mode="after")
    def _files_or_world(self) -> Self:
        files = (self.demonstrations, self.problems, self.test)
        if self.tiny_world is None and None in files:
            raise ValueError("demonstrations, problems and test are needed (or tiny_world in their place)")
        if self.tiny_world is not None and any(files):
            raise ValueError("give either the three files or tiny_world, not both")
        return self


class OptimizerConfig(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: PositiveFloat = Field(default=1e-5, description="Peak learning rate. Source: paper (SFT).")
    warmup_ratio: Fraction = Field(
        default=0.1, description="Share of the steps spent warming up. Source: a sister recipe of the paper's group."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="AdamW weight decay. Source: a sister recipe of the paper's group."
    )
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Gradient clipping norm. Source: ours (TRL's).")
    adam_beta2: Fraction = Field(default=0.999, description="AdamW beta2. Source: ours (transformers' default).")


class SelectConfig(Section):
    """Which correct trajectories join the demonstrations."""

    strategy: StrategyName = Field(
        default="length_distribution",
        description="How to choose among correct, well-formed trajectories; docs/selection.md describes each. Or one "
        "of your own: package.module:function, or an entry point of the group still_ray.strategies. Source: paper (the "
        "teacher's length distribution per problem type beat random choice).",
    )
    max_per_problem: PositiveInt = Field(
        default=1,
        description="At most so many trajectories, each of another text, of one problem over all rounds. Source: ours.",
    )
    max_examples: PositiveInt | None = Field(
        default=None, description="At most so many explored trajectories in all; null: no cap. Source: ours."
    )
    max_solve_rate: Fraction | None = Field(
        default=None,
        description="Leave out problems of whose judged rollouts a larger share is correct, e.g. 0.99 for those always "
        "solved; null: none. Source: ours.",
    )


class PairConfig(Section):
    """Which trajectories become preference pairs."""

    rule: PairRuleName = Field(
        default="paper",
        description="paper: correct with the highest perplexity against incorrect with the lowest; reverse: correct "
        "with the lowest against incorrect with the highest; random; length_matched: thoughts of like length; concise: "
        "the shortest correct against the longest correct; truncated: correct against one that the token limit cut "
        "off. Or one of your own: package.module:function, or an entry point of the group still_ray.pair_rules. "
        "Source: paper.",
    )
    max_per_problem: PositiveInt = Field(
        default=1, description="At most so many pairs of one problem, no trajectory twice. Source: paper (one)."
    )
    max_pairs: PositiveInt | None = Field(
        default=None, description="At most so many pairs in all; null: no cap. Source: ours."
    )
    rounds: Literal["latest", "all"] = Field(
        default="latest", description="Pair trajectories of the latest round, or of all. Source: ours (on-policy)."
    )


class TrainingSection(Section):
    """What all training methods have in common."""

    init: Init = Field(
        default="backbone",
        description="Start from the backbone or from the previous stage's model. "
        "Source: ours for SFT (Table 2's growing data sets suggest the backbone).",
    )
    scope: Scope = Field(default="whole", description="Learn thought + solution, or the thought alone. Source: paper.")
    epochs: PositiveFloat = Field(default=3.0, description="Passes over the data. Source: ours, the paper names none.")
    global_batch_size: PositiveInt = Field(
        default=96, description="Rows in one optimizer step over all workers. Source: paper (SFT)."
    )
    per_device_batch_size: PositiveInt = Field(
        default=1, description="Rows in one forward pass of one worker. Source: ours, for 20,000-token sequences."
    )
    micro_batch_tokens: PositiveInt | None = Field(
        default=None,
        description="In place of per_device_batch_size: a forward pass of one worker has as many rows of a like length "
        "as fit so many tokens, padding counted, or one longer row; every worker makes equally many passes. "
        "docs/training.md, long rows. null: per_device_batch_size rows, whatever their length. Source: ours.",
    )
    max_length: PositiveInt | Auto = Field(
        default="auto",
        description="Longest prompt + response, tokens; longer rows are left out and counted. auto: 20,000, on "
        "CPUs 8,192, or what the model was made for and a rank's memory holds, if that is less. Source: a sister "
        "recipe of the paper's group.",
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW. Source: see its fields.")
    save_steps: PositiveInt | None = Field(
        default=None,
        description="Save a resumable trainer state every so many steps; null: never, a killed stage starts again. "
        "Source: ours.",
    )

    @model_validator(mode="after")
    def _one_size_of_pass(self) -> Self:
        default = type(self).model_fields["per_device_batch_size"].default
        if self.micro_batch_tokens is not None and self.per_device_batch_size != default:
            raise ValueError(
                f"micro_batch_tokens takes the place of per_device_batch_size ({self.per_device_batch_size}): leave "
                f"that out, or set it to {default}"
            )
        return self

    @property
    def longest(self) -> int:
        """`max_length`, and while it is not settled the most that it can become."""
        return PUBLISHED_ROW if self.max_length == "auto" else self.max_length

    @property
    def least_rows(self) -> int:
        """Rows that a forward pass of one worker has at least: of these the global batch is a multiple."""
        return self.per_device_batch_size if self.micro_batch_tokens is None else 1

    def require_rows_apart(self, loss: str) -> None:
        """Refuses a loss that compares rows of a forward pass where a pass may be a single row.

        Raises:
            ValueError: Tokens decide how many rows a pass has.
        """
        if self.micro_batch_tokens is not None:
            raise ValueError(
                f"the loss {loss} compares rows of a forward pass with one another, of which micro_batch_tokens may "
                "leave one: take another loss, or per_device_batch_size"
            )


class AdaptiveConfig(Section):
    """Adaptive exploration: few rollouts for every problem first, more for those that are still unsolved."""

    initial: PositiveInt = Field(default=4, description="Rollouts of every problem. Source: ours.")
    step: PositiveInt = Field(
        default=4, description="Further rollouts of a problem at a time, while it lacks correct ones. Source: ours."
    )
    enough_correct: PositiveInt = Field(
        default=1, description="Correct rollouts after which a problem gets no more. Source: ours."
    )


class ExploreConfig(Section):
    """How one round samples."""

    samples_per_problem: PositiveInt = Field(
        default=20, description="Rollouts of one problem; with `adaptive`, at most. Source: paper (at most 20)."
    )
    adaptive: AdaptiveConfig | None = Field(
        default=None,
        description="Stop early at problems with enough correct rollouts; null: all get the same. Source: ours.",
    )
    max_sampled_tokens: PositiveInt | None = Field(
        default=None,
        description="Budget of a round in sampled tokens. After the first wave, problems whose next verdicts are least "
        "certain come first; `adaptive` says how large waves are (null: its defaults) and where a problem stops. No "
        "response is cut: the first wave, or the last, may go over it. null: no budget. Source: ours.",
    )
    overlap: Literal[0, 1] = Field(
        default=0,
        description="1: the round samples while the round before it trains, from the policy that stands before that "
        "training; needs placement dedicated. The first round waits for imitation in any case. Source: ours.",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Sampling temperature. Source: ours, the paper names none."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Nucleus mass. Source: ours, the paper names none."
    )
    max_tokens: PositiveInt | Auto = Field(
        default="auto",
        description="Longest response, tokens; auto: 20,000, or two thirds of model.max_length if that is less. "
        "Source: paper (evaluation max_tokens and max_length).",
    )
    num_problems: PositiveInt | None = Field(
        default=None, description="Problems of one round, chosen by seed; null: all that are left. Source: ours."
    )
    levels: Range | None = Field(
        default=None, description="Only problems whose level is in this closed range; null: all. Source: ours."
    )
    skip_solved: bool = Field(
        default=True,
        description="Leave out problems that an earlier round solved. Source: ours (the paper: until exhausted).",
    )

    @property
    def longest(self) -> int:
        """`max_tokens`, and while it is not settled the most that it can become."""
        return PUBLISHED_RESPONSE if self.max_tokens == "auto" else self.max_tokens

    @model_validator(mode="after")
    def _waves_below_the_cap(self) -> Self:
        cap = self.samples_per_problem
        if self.adaptive and max(self.adaptive.initial, self.adaptive.enough_correct) > cap:
            raise ValueError(
                f"adaptive.initial and adaptive.enough_correct must be at most samples_per_problem ({cap})"
            )
        return self


class EvaluateConfig(Section):
    """Held-out evaluation after the backbone and after every training stage; greedy unless it draws several samples."""

    max_tokens: PositiveInt | Auto = Field(
        default="auto",
        description="Longest response, tokens; auto: 20,000, or two thirds of model.max_length if that is less. "
        "Source: paper.",
    )
    num_problems: PositiveInt | None = Field(
        default=None, description="First so many test problems; null: all. Source: paper (all)."
    )
    num_samples: PositiveInt = Field(
        default=1,
        description="Responses to each problem; several give pass@k, avg@N and majority@N. Source: paper (one).",
    )
    temperature: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto",
        description="0 is greedy; auto: 0 for one sample, else 0.6. Source: paper (greedy), DeepSeek-R1's evaluation "
        "(0.6).",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        default="auto",
        description="Nucleus mass; auto: 1 if greedy, else 0.95. Source: DeepSeek-R1's evaluation (0.95).",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=42, description="Seed that the samples' own seeds follow from. Source: paper."
    )

    @model_validator(mode="after")
    def _samples_can_differ(self) -> Self:
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"num_samples ({self.num_samples}) greedy responses are one and the same: give a temperature above 0, "
                "or one sample"
            )
        return self

    @property
    def longest(self) -> int:
        """`max_tokens`, and while it is not settled the most that it can become."""
        return PUBLISHED_RESPONSE if self.max_tokens == "auto" else self.max_tokens

    @property
    def sampling(self) -> SamplingSettings:
        """How responses are drawn, nothing left to auto."""
        temperature = self.temperature if self.temperature != "auto" else 0.0 if self.num_samples == 1 else 0.6
        top_p = self.top_p if self.top_p != "auto" else 0.95 if temperature else 1.0
        return SamplingSettings(temperature=float(temperature), top_p=float(top_p), max_tokens=self.longest)


class SamplerConfig(Section):
    """Sampler replicas: Ray actors, each with a vLLM engine."""

    num_replicas: PositiveInt | Auto = Field(
        default="auto",
        description="Replicas alive through the run; auto: on this machine's GPUs as many as they hold, on CPUs one, "
        "and two of a model below 10 million parameters; on a cluster that is joined two. Source: ours.",
    )
    min_replicas: PositiveInt | None = Field(
        default=None,
        description="Replicas that must be up before sampling begins; the others join the round in progress. null: "
        "all; 1 where nodes come and go. Source: ours.",
    )
    release_while_training: bool = Field(
        default=False,
        description="End the replicas while the trainer works, so that an autoscaler lets their nodes go; with "
        "placement shared always so. Source: ours.",
    )
    sleep_level: Literal[1, 2] = Field(
        default=2,
        description="What an engine does with its weights while placement elastic has ranks use its devices. 1: moves "
        "them to the host's memory and back, so that the proof of a sync has scores of the weights before; 2: drops "
        "them, as the sync that follows every training brings all of them anyway. Source: ours (vLLM's levels).",
    )
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)
    tensor_parallel_size: PositiveInt = Field(default=1, description="Devices of one replica. Source: ours.")
    cpus_per_replica: PositiveFloat = Field(default=1.0, description="Ray CPUs of one replica. Source: ours.")
    gpus_per_replica: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto",
        description="Ray GPUs of one replica; auto: tensor_parallel_size, or 0 without GPUs. Source: ours.",
    )
    threads: PositiveInt | Auto = Field(
        default="auto",
        description="OpenMP threads of one CPU replica; auto: this machine's cores over the replicas. Source: ours.",
    )
    max_num_seqs: PositiveInt | Auto = Field(
        default="auto",
        description="Sequences decoded together; auto: 64, on CPUs 16 of a model of 10 million parameters or more, and "
        "fewer where the KV cache holds no 1,024 tokens of each. Source: ours, measured.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Weights and activations; auto: the checkpoint's; on CPUs float32, and bfloat16 where the "
        "checkpoint has it, the CPU computes in it (avx512_bf16, amx_bf16 or bf16 among its flags) and no trainer in "
        "float32 is beside it. Source: ours.",
    )
    kv_cache_gib: PositiveInt | Auto = Field(
        default="auto",
        description="KV cache of a CPU replica, GiB; auto: what max_num_seqs sequences fill, at most an eighth of the "
        "memory, at least 1 and what a model.max_length takes that is given. Source: ours.",
    )
    gpu_memory_utilization: Fraction = Field(default=0.9, description="Share of a GPU's memory. Source: ours (vLLM's).")
    max_in_flight_factor: PositiveFloat = Field(
        default=1.1,
        description="Unfinished samples that keep a replica busy, over max_num_seqs: it is sent another problem while "
        "there is room for half of its samples. Source: ours, measured.",
    )
    engine_statistics: bool | Auto = Field(
        default="auto",
        description="vLLM's own statistics in Ray's metrics; auto: on GPUs, since a tiny model on a CPU loses 10 to 30 "
        "percent of its speed to them. Source: ours, measured on a busy machine.",
    )
    engine: EngineArguments = Field(
        default_factory=dict,
        description="Further arguments of vLLM's EngineArgs, e.g. {kv_cache_dtype: fp8}; docs/operating.md, arguments "
        "of the libraries, names those that the recipe decides. Source: ours, none.",
    )


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): a weight W stays as it is, and W + scale B A is trained by B and A.

    A stage starts with B = 0, and what it trained is added to the weights at its end; docs/training.md, LoRA.
    """

    rank: PositiveInt = Field(
        default=32,
        description="Rows of A and columns of B. Source: ours, between the 4 to 8 of the LoRA paper's runs on tasks of "
        "short texts and the 64 of QLoRA (arXiv 2305.14314).",
    )
    alpha: PositiveInt = Field(
        default=32,
        description="The product is scaled by alpha / rank. Source: LoRA Without Regret (Thinking Machines, 2025), 32.",
    )
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        default="all-linear",
        description="Which linear layers have an adapter: all-linear, those of every block, or a list of names such as "
        "[q_proj, v_proj] (the LoRA paper's); the LM head has none. Source: QLoRA and LoRA Without Regret (adapters of "
        "attention alone learn less).",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Dropout in front of A; methods with a reference train without. Source: ours, none.",
    )
    rslora: bool = Field(
        default=False,
        description="Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732). Source: the LoRA paper (off).",
    )
    embeddings: bool | Auto = Field(
        default="auto",
        description="Whether the embeddings and the LM head are trained as well, whole, as tokens need that the model "
        "has never seen; auto: those of a model below 10 million parameters. Source: ours; all-linear of QLoRA and of "
        "LoRA Without Regret leaves them frozen.",
    )

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class TrainerConfig(Section):
    """The trainer group: Ray Train workers under DeepSpeed ZeRO."""

    num_workers: PositiveInt | Auto = Field(
        default="auto",
        description="Ranks; auto: on this machine's GPUs as many as they hold and batches can be divided by, on CPUs "
        "one, and two for a model below 10 million parameters; on a cluster that is joined two. Source: ours.",
    )
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="Ray CPUs of one rank. Source: ours.")
    use_gpu: bool | Auto = Field(default="auto", description="auto: when the cluster has GPUs. Source: ours.")
    threads: PositiveInt | Auto = Field(
        default="auto",
        description="Torch threads of one CPU rank; auto: this machine's cores over the ranks. Source: ours.",
    )
    zero_stage: Literal[2, 3] = Field(default=3, description="DeepSpeed ZeRO stage. Source: paper's group (ZeRO-3).")
    offload: Literal["none", "cpu"] = Field(
        default="none", description="Where optimizer state and parameters rest. Source: ours."
    )
    bf16: bool | Auto = Field(
        default="auto",
        description="auto: on GPUs; on a CPU that computes in it only where float32 does not fit its memory, since "
        "from stage to stage bfloat16 weights forget what moved them by less than 1/512. Source: paper's group (bf16).",
    )
    gradient_checkpointing: bool | Auto = Field(
        default="auto",
        description="auto: on GPUs, and on CPUs where the rows do not fit the memory without. Source: paper's group "
        "(on).",
    )
    num_mlp_tiles: PositiveInt = Field(
        default=1,
        description="Tiles of tokens in which the MLP of a layer is computed, and computed again in the backward pass, "
        "so that gate, up and their product exist of one tile at a time; docs/training.md, long rows. Source: ours, "
        "whole.",
    )
    offload_activations: bool = Field(
        default=False,
        description="What the forward pass keeps for the backward pass, the inputs of layers, waits in the host's "
        "memory; needs gradient_checkpointing, and without GPUs it is there anyway. Source: ours, off.",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="Train adapters of the weights instead of the weights, e.g. {rank: 32}, {} for every default; a "
        "learning rate some ten times as high belongs to it. null: all weights. Source: paper (all weights).",
    )
    sequence_parallel_size: PositiveInt = Field(
        default=1,
        description="Ranks that share each row, every one with a slice of its tokens, for rows too long for one rank "
        "(Ulysses, arXiv 2309.14509); it divides num_workers and the model's attention heads. Source: ours, none.",
    )
    logging_steps: PositiveInt = Field(default=5, description="Optimizer steps between progress reports. Source: ours.")
    collective_timeout_s: PositiveFloat = Field(
        default=7200.0,
        description="Time that a rank waits for the others, seconds: more than the slowest takes to write or fetch its "
        "part of a state, but a rank that hangs is found no sooner. Source: ours, the state of 32B (459 GB) from one "
        "node over 1 Gbit/s takes 61 minutes.",
    )
    report_to: tuple[Reporter, ...] = Field(
        default=(),
        strict=False,
        description="Experiment trackers that rank 0 reports to, by transformers' own callbacks; their packages must "
        "be installed. Source: ours, none.",
    )
    deepspeed: DeepspeedArguments = Field(
        default_factory=dict,
        description="Merged into DeepSpeed's configuration, section by section, e.g. {zero_optimization: "
        "{sub_group_size: 100000000}}; see sampler.engine. Source: ours, none.",
    )
    trl: TrlArguments = Field(
        default_factory=dict,
        description="Further arguments of TRL's configurations (SFTConfig, DPOConfig, KTOConfig), of which each method "
        "is given those that its own knows, e.g. {optim: adamw_torch}; see sampler.engine. Source: ours, none.",
    )
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)

    @model_validator(mode="after")
    def _inputs_alone_are_off_loaded(self) -> Self:
        if self.offload_activations and self.gradient_checkpointing is False:
            raise ValueError(
                "offload_activations needs gradient_checkpointing: without it layers keep all that lies inside them "
                "and their gathered weights"
            )
        return self


class CodeConfig(Section):
    """How programs are judged: in a sandbox, or not at all."""

    timeout_s: PositiveFloat = Field(
        default=6.0, description="Wall time of one case, or of all assertions, seconds. Source: LiveCodeBench."
    )
    total_timeout_s: PositiveFloat = Field(
        default=60.0, description="Wall time of all cases of one answer, seconds. Source: ours."
    )
    memory_mib: Annotated[int, Field(ge=64)] = Field(
        default=1024, description="Address space of a program, MiB; it is one process. Source: ours."
    )
    threads: PositiveInt = Field(default=16, description="Threads of a program. Source: ours.")
    output_mib: PositiveInt = Field(
        default=16, description="Output of a program before it is killed, MiB. Source: ours."
    )
    tmp_mib: PositiveInt = Field(default=32, description="Size of a program's own /tmp, MiB. Source: ours.")
    sandbox: str = Field(
        default="bwrap",
        description="Name or path of bubblewrap, 0.7 or newer; none: code is not judged (verdict error). Source: ours.",
    )
    sandbox_command: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="Another sandbox instead: what to put in front of the interpreter's command line. It is used only "
        "if it passes the same probe as bubblewrap. Source: ours.",
    )


class VerifierConfig(Section):
    """Verifier workers: Ray actors around killable processes."""

    num_workers: PositiveInt = Field(default=1, description="Verifier actors. Source: ours.")
    processes_per_worker: PositiveInt = Field(default=1, description="Killable processes of one actor. Source: ours.")
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="Ray CPUs of one actor. Source: ours.")
    node_labels: dict[str, str] = Field(default_factory=dict, description=_NODE_LABELS)
    timeout_s: PositiveFloat = Field(default=5.0, description="Time for one answer, seconds. Source: ours.")
    memory_mib: PositiveInt = Field(
        default=1024, description="Address space of one process beyond its start, MiB. Source: ours."
    )
    code: CodeConfig = Field(default_factory=CodeConfig, description="Sandbox and limits of programs. Source: ours.")
    custom: OwnVerifiers = Field(
        default_factory=dict,
        description="Verifiers of your own by domain, a name of your own or one of math, choice, code and exact; each "
        "package.module:function or an entry point of the group still_ray.verifiers, e.g. {towns: "
        "my_package.judge:same_town}. Source: ours.",
    )


class SyncConfig(Section):
    """How new weights reach the replicas, and how that is proved."""

    transport: Annotated[str, AfterValidator(canonical_name)] = Field(
        default="auto",
        description="object_store: packed buckets from the trainer; checkpoint: each replica reads the files; "
        "broadcast: from GPU to GPU by NCCL (by gloo without GPUs; nccl is its older name); your own as "
        "package.module:object; auto: checkpoint where samplers are released while training, broadcast where trainer "
        "and samplers hold GPUs of their own, else object_store. Source: ours.",
    )
    timeout_s: PositiveFloat = Field(
        default=600.0,
        description="Time for bringing all replicas to a new version, seconds; one that has not answered by then is "
        "replaced. Source: ours, tens of times what 32B needs.",
    )
    bucket_mib: PositiveInt = Field(default=256, description="Size of one packed bucket, MiB. Source: ours.")
    num_probes: PositiveInt = Field(
        default=4, description="Sequences whose log-probabilities are compared. Source: ours."
    )
    tolerance: PositiveFloat | Auto = Field(
        default="auto",
        description="Largest mean absolute difference of log-probabilities that is ever allowed; less is, where the "
        "noise was measured. auto: 0.001 for float32, 0.1 for bfloat16, 0.25 for that on CPUs. Source: ours, measured.",
    )


class FailureConfig(Section):
    """Named failure policies: what is retried, how often, and what is given up."""

    max_replica_restarts: Annotated[int, Field(ge=0)] = Field(
        default=8, description="Dead sampler replicas replaced in one run. Source: ours."
    )
    max_verifier_restarts: Annotated[int, Field(ge=0)] = Field(
        default=8, description="Dead verifier actors replaced in one run. Source: ours."
    )
    max_trainer_restarts: Annotated[int, Field(ge=0)] = Field(
        default=3, description="Times that a broken trainer group is built again. Source: ours."
    )
    max_prompt_attempts: PositiveInt = Field(
        default=3, description="Tries of one prompt on dying replicas before the run fails. Source: ours."
    )
    replica_timeout_s: PositiveFloat | None = Field(
        default=1800.0,
        description="Time after which a replica that holds requests and whose engine makes no step is replaced as a "
        "dead one, seconds; null: never. Source: ours, thousands of times what a step takes.",
    )


def merged(base: Any, override: Any) -> Any:
    """A deep merge of two YAML mappings; inside a mapping anything else replaces, null too."""
    if override is None:
        return {} if base is None else base
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    both = {key: merged(base.get(key), value) for key, value in override.items() if isinstance(value, dict)}
    return {**base, **override, **both}
