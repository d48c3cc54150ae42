"""The recipe of a whole run, and its rounds.

Which sections a recipe has depends on the training methods that it names: each built-in method has one, and so has each
method of the user's own. So the schema of a recipe is made of the recipe, see `recipe_type`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import AfterValidator, Field, SerializeAsAny, create_model, model_serializer, model_validator

from still_ray.config.methods import IMITATION, METHODS, AnyMethod, method_named
from still_ray.config.schema import (
    Auto,
    DataConfig,
    EvaluateConfig,
    ExploreConfig,
    FailureConfig,
    ModelConfig,
    Placement,
    PromptConfig,
    SamplerConfig,
    Section,
    SyncConfig,
    TrainerConfig,
    TrainingSection,
    VerifierConfig,
    merged,
)


def _known(name: str) -> str:
    method_named(name)
    return name


MethodName = Annotated[str, AfterValidator(_known)]
"""A built-in method, or a user's own as `package.module:object` or by entry point."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One training stage as the recipe asks for it.

    Attributes:
        where: Dotted name of its section: "imitate", "rounds.0.sft", ...
        round: 0 for imitation, then 1, 2, ...
        named: What the recipe calls its method: a built-in name, or a path.
        method: How it trains.
        settings: Its section.
    """

    where: str
    round: int
    named: str
    method: AnyMethod
    settings: TrainingSection


class RoundConfig(Section):
    """One round: explore, then train by one method after the other. Keys left out come from the recipe's sections."""

    method: MethodName | None = Field(
        default=None,
        exclude=True,
        description="Short for train: [method], in a round that explores. Source: ours.",
    )
    explore: ExploreConfig | None = Field(
        default=None,
        description="Overrides of explore, or {} for none; without it a round that says `train` explores nothing and "
        "trains on what the pool holds. Source: see there.",
    )
    train: tuple[MethodName, ...] = Field(
        default=(IMITATION,),
        strict=False,
        description="Training methods, each a stage of its own, in order: names of sections such as sft, or your own "
        "as package.module:object. Source: paper (SFT, SFT then DPO).",
    )
    methods: ClassVar[Mapping[str, AnyMethod]] = {}

    @model_validator(mode="before")
    @classmethod
    def _method_is_short_for_train(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") is None:
            return data
        if "train" in data:
            raise ValueError("give either method or train, not both")
        return {**data, "train": [data["method"]]}

    @model_validator(mode="after")
    def _each_method_once(self) -> Self:
        self.__dict__["method"] = None  # `train` has it: rounds that say the same in either way are equal
        for name in self.train:
            if self.train.count(name) > 1:
                raise ValueError(f"train names {name} twice: a method trains once in a round")
        return self

    @property
    def sections(self) -> list[tuple[str, AnyMethod, TrainingSection]]:
        """The methods of the round in order: what the round calls each, the method, and its section."""
        found = [(name, self.methods[name]) for name in self.train]
        return [(name, method, getattr(self, method.name)) for name, method in found]


class Recipe(Section):
    """A whole run: backbone, data, imitation, rounds, and the resources of every part."""

    name: str = Field(default="still-ray", description="Name of the run in the dashboard. Source: ours.")
    seed: Annotated[int, Field(ge=0)] = Field(default=42, description="Seed of everything. Source: paper (evaluation).")
    model: ModelConfig = Field(description="The backbone. Source: no default.")
    prompt: PromptConfig = Field(default_factory=PromptConfig, description="The user turn. Source: see its fields.")
    data: DataConfig = Field(description="Demonstrations, problems, test set. Source: no default.")
    imitate: TrainingSection = Field(default_factory=TrainingSection, description="Round 0. Source: paper.")
    explore: ExploreConfig = Field(default_factory=ExploreConfig, description="Defaults of every round. Source: paper.")
    rounds: tuple[RoundConfig, ...] = Field(
        strict=False, description="The rounds after imitation, in order; may be empty. Source: no default."
    )
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation. Source: paper.")
    placement: Placement | Auto = Field(
        default="auto",
        description="dedicated: trainer and samplers hold devices of their own; shared: both use the same, one after "
        "the other: samplers are released while training and come back with the new version; elastic: replicas hold "
        "every device, and those on whose devices the trainer's ranks work sleep meanwhile; auto: dedicated, and "
        "shared where this machine does not hold both side by side. Source: ours.",
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="Sampler replicas. Source: ours.")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig, description="Trainer group. Source: ours.")
    verifier: VerifierConfig = Field(default_factory=VerifierConfig, description="Verifiers. Source: ours.")
    sync: SyncConfig = Field(default_factory=SyncConfig, description="Weight sync. Source: ours.")
    failures: FailureConfig = Field(default_factory=FailureConfig, description="Failure policies. Source: ours.")
    methods: ClassVar[Mapping[str, AnyMethod]] = {}
    """The training methods that the recipe has sections for, by what it calls them."""

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validates a recipe by the schema that its training methods give it."""
        if cls is Recipe:
            return cast(Self, recipe_type(obj).model_validate(obj, **options))
        return super().model_validate(obj, **options)

    def __reduce__(self) -> tuple[Callable[..., Recipe], tuple[dict[str, Any]]]:
        """By its values: the class of a recipe is made where it is loaded and has no name to be found by."""
        return Recipe.model_validate, (self.model_dump(mode="json"),)

    @model_validator(mode="before")
    @classmethod
    def _fill_rounds(cls, data: Any) -> Any:
        """Fills what a round leaves out from the recipe's own sections."""
        if not isinstance(data, dict) or not isinstance(data.get("rounds"), list | tuple):
            return data
        return {**data, "rounds": [_filled_round(entry, data, cls.methods) for entry in data["rounds"]]}

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        sharing, workers = self.trainer.sequence_parallel_size, self.trainer.num_workers
        if workers == "auto":
            workers = sharing  # it will divide every batch
        if workers % sharing:
            raise ValueError(f"trainer.sequence_parallel_size ({sharing}) must divide trainer.num_workers ({workers})")
        for step in self.steps:
            where, section = step.where, step.settings
            if section.global_batch_size % (section.least_rows * (workers // sharing)):
                factors = "trainer.num_workers", f"{workers}"
                if sharing > 1:
                    factors = f"{factors[0]} / trainer.sequence_parallel_size", f"{workers} / {sharing}"
                if section.micro_batch_tokens is None:
                    factors = f"per_device_batch_size x {factors[0]}", f"{section.per_device_batch_size} x {factors[1]}"
                raise ValueError(
                    f"{where}.global_batch_size ({section.global_batch_size}) must be a multiple of "
                    f"{factors[0]} ({factors[1]})"
                )
        replicas, least = self.sampler.num_replicas, self.sampler.min_replicas
        if least and replicas != "auto" and least > replicas:
            raise ValueError(f"sampler.min_replicas ({least}) must be at most sampler.num_replicas ({replicas})")
        self._sleeping_fits()
        longest = self.model.max_length
        for where, max_tokens in self.token_limits():
            if longest != "auto" and max_tokens >= longest:
                raise ValueError(
                    f"{where}.max_tokens ({max_tokens}) must leave room for the prompt: less than model.max_length "
                    f"({longest})"
                )
        return self

    def _sleeping_fits(self) -> None:
        """What engines that sleep cannot do at the same time."""
        if self.placement != "elastic":
            return
        if self.sampler.release_while_training:
            raise ValueError(
                "sampler.release_while_training ends engines that placement elastic puts to sleep: give one"
            )
        if self.sync.transport == "broadcast":
            raise ValueError(
                "sync.transport: broadcast sends what the ranks hold on their devices, and with placement elastic "
                "engines take these back first: give auto, object_store or checkpoint"
            )

    @model_validator(mode="after")
    def _overlap_has_devices(self) -> Self:
        """Samplers that make room for the trainer cannot sample meanwhile."""
        if not self.overlapped:
            return self
        where = f"rounds.{min(self.overlapped) - 1}.explore.overlap: 1 samples while the trainer works"
        if self.placement not in ("dedicated", "auto"):
            raise ValueError(f"{where}: it needs placement: dedicated, not {self.placement}")
        if self.sampler.release_while_training:
            raise ValueError(f"{where}: it needs sampler.release_while_training: false")
        return self

    @model_validator(mode="after")
    def _stages_come_before_their_use(self) -> Self:
        """Nothing can be learnt from a pool that is empty for certain, nor compared with a stage that comes later."""
        explores = False
        trained = [f"000-{_IMITATE}"]
        for number, entry in enumerate(self.rounds, start=1):
            explores = explores or entry.explore is not None
            for name, method, settings in entry.sections:
                if method.needs_pool and not explores:
                    raise ValueError(
                        f"rounds.{number - 1}.train: {name} learns from explored responses, and no round has explored "
                        "by then: give this round explore: {}"
                    )
                reference = method.reference(settings)
                if reference not in ("", "start", "backbone", *trained):
                    raise ValueError(
                        f"rounds.{number - 1}.{method.name}.reference: {reference!r} must be start, backbone or a "
                        f"training stage before this one: {', '.join(trained)}"
                    )
                trained.append(f"{number:03d}-{method.name}")
        return self

    @model_serializer(mode="wrap")
    def _methods_beside_the_defaults(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """The sections of methods stand behind `explore`, where a reader of a recipe looks for defaults of rounds."""
        values = dump(self)
        own = {name: values.pop(name) for method in self.methods.values() if (name := method.name) in values}
        ordered: dict[str, Any] = {}
        for key, value in values.items():
            ordered[key] = value
            if key == "explore":
                ordered |= own
        return ordered

    @property
    def steps(self) -> list[TrainingStep]:
        """Every training stage in order."""
        imitation = self.methods[IMITATION]
        steps = [
            TrainingStep(where=_IMITATE, round=0, named=IMITATION, method=imitation, settings=self.imitate),
        ]
        for number, entry in enumerate(self.rounds):
            steps += [
                TrainingStep(
                    where=f"rounds.{number}.{method.name}",
                    round=number + 1,
                    named=name,
                    method=method,
                    settings=settings,
                )
                for name, method, settings in entry.sections
            ]
        return steps

    @property
    def explorations(self) -> list[tuple[int, ExploreConfig]]:
        """The rounds that explore, each with how it does, in order."""
        rounds = enumerate(self.rounds, start=1)
        return [(number, entry.explore) for number, entry in rounds if entry.explore is not None]

    @property
    def overlapped(self) -> frozenset[int]:
        """The rounds that sample while the round before them trains."""
        return frozenset(
            number
            for number, explore in self.explorations
            if explore.overlap and any(step.round == number - 1 for step in self.steps if step.round)
        )

    def step(self, round_number: int, method: str) -> TrainingStep:
        """The training stage of a round by the name of its method."""
        return next(step for step in self.steps if (step.round, step.method.name) == (round_number, method))

    def token_limits(self) -> list[tuple[str, int]]:
        """Longest responses that are given or settled, tokens, by section."""
        rounds = [(f"rounds.{number - 1}.explore", explore.max_tokens) for number, explore in self.explorations]
        return [(where, limit) for where, limit in [("evaluate", self.evaluate.max_tokens), *rounds] if limit != "auto"]


_IMITATE = "imitate"


def recipe_type(raw: Any) -> type[Recipe]:
    """The schema of a recipe that is not validated yet: with a section for each built-in method and each that it names.

    A name that means no method is left out here; the schema refuses it where it stands.

    Raises:
        ValueError: Two methods have the same name.
    """
    names = dict.fromkeys(METHODS)
    for name in _named(raw):
        try:
            method_named(name)
        except ValueError:
            continue
        names[name] = None
    return _recipe_type(tuple(names))


@lru_cache(maxsize=32)
def _recipe_type(names: tuple[str, ...]) -> type[Recipe]:
    methods = {name: method_named(name) for name in names}
    sections = {method.name: method.settings for method in methods.values()}
    if len(sections) < len(methods):
        raise ValueError(f"two training methods have the same name: {', '.join(names)}")
    overrides: dict[str, Any] = {
        name: (section | None, Field(default=None, description=f"Overrides of {name}. Source: see there."))
        for name, section in sections.items()
    }
    defaults: dict[str, Any] = {
        method.name: (
            method.settings,
            Field(
                default_factory=method.settings, description=f"Defaults of {method.title} stages. Source: see there."
            ),
        )
        for method in methods.values()
    }
    imitation = sections[IMITATION]
    round_type = create_model("RoundConfig", __base__=RoundConfig, __doc__=RoundConfig.__doc__, **overrides)
    round_type.methods = methods
    recipe = create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        imitate=(imitation, Field(default_factory=imitation, description="Round 0. Source: paper.")),
        rounds=(
            tuple[SerializeAsAny[round_type], ...],
            Recipe.model_fields["rounds"],
        ),
        **defaults,
    )
    recipe.methods = methods
    return recipe


def _named(raw: Any) -> Iterator[str]:
    """What a recipe's rounds name as training methods."""
    rounds = raw.get("rounds") if isinstance(raw, dict) else None
    for entry in rounds if isinstance(rounds, list | tuple) else ():
        if isinstance(entry, dict):
            train = entry.get("train")
            given = [entry.get("method"), *(train if isinstance(train, list | tuple) else ())]
            yield from (name for name in given if isinstance(name, str))


def _filled_round(entry: Any, recipe: dict[str, Any], methods: Mapping[str, AnyMethod]) -> Any:
    """One round with what it leaves out taken from the recipe.

    A round that says what it trains by `train` explores only where it says so; one that names a `method`, or nothing,
    explores as rounds did before they could do otherwise.
    """
    if not isinstance(entry, dict):
        return entry
    filled = dict(entry)
    if "explore" not in entry and "train" in entry:
        filled["explore"] = None
    elif "explore" not in entry or entry["explore"] is not None:
        filled["explore"] = merged(recipe.get("explore"), entry.get("explore"))
    train = entry.get("train", [entry.get("method") or IMITATION])
    for name in train if isinstance(train, list | tuple) else ():
        if isinstance(name, str) and name in methods:
            section = methods[name].name
            filled[section] = merged(recipe.get(section), entry.get(section))
    return filled
