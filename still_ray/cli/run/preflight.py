"""Everything that can be wrong with a run, found before anything heavy starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from still_ray import tiny_world
from still_ray.algo.placement import uses_gpu
from still_ray.algo.planning.disk import STATE_BYTES
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.sampler_memory import longest_cached
from still_ray.algo.planning.trainer_memory import precision_of
from still_ray.config import DataConfig, Recipe, SamplerConfig, TinyWorldConfig, TrainerConfig, VerifierConfig
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.model_files import check_model_files, read_config
from still_ray.formats.problems import ProblemIndex, read_problems, validate_problems
from still_ray.formats.prompt import EndOfTurn, asks_date, check_chat_template, end_of_turn, load_template
from still_ray.formats.tokenizer import NO_WEIGHTS, check_model_directory, load_tokenizer
from still_ray.location import Location, ObjectPath, is_uri, location
from still_ray.prepare.filters.words import unspaced_hash
from still_ray.store.atomic import write_text
from still_ray.store.cache import local_model
from still_ray.store.run_directory import RunDirectory
from still_ray.store.transfer import files_below, upload
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import Demonstration, Domain, InputError

BUILTIN_BACKBONE = "builtin:tiny"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""What a machine with GPUs of NVIDIA or AMD has."""
BACKBONE = Path(tiny_world.__file__).parent / "backbone"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run, validated.

    Attributes:
        demonstrations_path: A file that `still_ray.rows` reads.
        problems: Ids and levels of the problems to explore.
        test: Ids and levels of the held-out problems.
        num_demonstrations: Their number.
        num_leaked: Held-out questions that are also among the demonstrations or problems, however they are spelled.
        num_control: Demonstrations left out because a control token stands in them as text.
    """

    demonstrations_path: str
    problems: ProblemIndex
    test: ProblemIndex
    num_demonstrations: int
    num_leaked: int
    num_control: int = 0

    @cached_property
    def _levels(self) -> dict[str, int | None]:
        return dict(zip(self.problems.ids, self.problems.levels, strict=True))

    def problem_levels(self) -> Mapping[str, int | None]:
        """See `still_ray.driver.ports.Data`."""
        return self._levels

    def demonstrations(self) -> Iterator[Demonstration]:
        """See `still_ray.driver.ports.Data`."""
        return read_demonstrations(self.demonstrations_path)

    def num_left_out(self) -> int:
        """See `still_ray.driver.ports.Data`."""
        return self.num_control


def resolve_backbone(model: str) -> str:
    """The model directory, URI or hub id behind `model.path`."""
    if model == BUILTIN_BACKBONE:
        return str(BACKBONE)
    return str(Path(model).resolve()) if Path(model).is_dir() else model


@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """What a model's files say of it.

    Attributes:
        end: What ends a response; `end_of_turn_notes` says what a person should know of it.
        num_parameters: How many it has; 0 for a hub id that is not known, whose files are not here.
        asks_date: Whether its chat template writes the date into a prompt.
    """

    end: EndOfTurn
    num_parameters: int
    asks_date: bool = False


def check_model(backbone: str, recipe: Recipe, *, trains: bool = True) -> CheckedModel:
    """Checks the backbone's files, its chat template and the prompt template, and that its sequences can be sampled.

    Args:
        backbone: Its directory, URI or hub id.
        recipe: The recipe.
        trains: Whether it is to be trained, and not only to be sampled from.

    Raises:
        InputError: Something is wrong with one of them.
    """
    folder, holds_weights = model_folder(backbone)
    check_model_directory(folder, weights=holds_weights)
    num_parameters = KNOWN_SHAPES[backbone].num_parameters if backbone in KNOWN_SHAPES else 0
    if Path(folder).is_dir():
        own_code = recipe.model.trust_remote_code
        tensors = check_model_files(Path(folder), location(backbone), trains=trains, own_code=own_code)
        num_parameters = sum(tensor.num_elements for tensor in tensors.values())
        check_length(Path(folder), recipe)
    load_template(recipe.prompt.template)
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.model.trust_remote_code, weights=holds_weights)
    check_chat_template(tokenizer)
    end = end_of_turn(tokenizer, folder)
    return CheckedModel(end=end, num_parameters=num_parameters, asks_date=asks_date(tokenizer))


def with_date(recipe: Recipe, directory: RunDirectory, *, asks: bool) -> Recipe:
    """The recipe with the day that a chat template is told: its own, else that on which the directory was begun.

    Args:
        recipe: The recipe.
        directory: Where the day is kept, so that the prompts of a run that goes on tomorrow are those of today.
        asks: Whether the model's chat template asks for the date; without that there is none to keep.

    Raises:
        InputError: What is kept is no day.
    """
    if not asks or recipe.prompt.date is not None:
        return recipe
    path = directory.prompt_date
    if not path.exists():
        write_text(path, f"{date.today().isoformat()}\n")
    try:
        day = date.fromisoformat(path.read_text(encoding="utf-8").strip()).isoformat()
    except ValueError:
        raise InputError(f"{path}: is no day as YYYY-MM-DD, which a chat template is told; set prompt.date") from None
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": day})})


def date_notes(recipe: Recipe, *, asks: bool) -> tuple[str, ...]:
    """A line where a chat template is told the date."""
    return (f"its chat template asks for the date and is told {recipe.prompt.date} throughout",) if asks else ()


def end_of_turn_notes(model: str, end: EndOfTurn) -> tuple[str, ...]:
    """A line where the model's own eos is not the token that ends a turn of its chat template."""
    if not end.differs:
        return ()
    own = ", ".join(str(token_id) for token_id in end.model_eos_ids) or "missing"
    return (
        f"{model}: its chat template ends a turn with {end.token} ({end.token_id}), its own eos is {own}: responses "
        "stop at each of them, and trained checkpoints name them all",
    )


def fitting_length(folder: Path, sampler: SamplerConfig) -> int | None:
    """Longest sequence that CPU replicas of a model can hold, tokens; None if they may run on GPUs, or nobody can tell.

    Raises:
        InputError: Its config.json is none.
    """
    on_gpu = sampler.gpus_per_replica == "auto" and may_have_gpus()
    if on_gpu or sampler.gpus_per_replica not in ("auto", 0):
        return None
    return longest_cached(read_config(folder), sampler)


def may_have_gpus() -> bool:
    """Whether the cluster may have GPUs, as far as can be told before it is joined: another's may, or this machine."""
    return bool(os.environ.get("RAY_ADDRESS")) or any(Path(device).exists() for device in GPU_DEVICES)


def check_length(folder: Path, recipe: Recipe) -> None:
    """Whether CPU replicas can hold one whole sequence, without which vLLM does not start.

    Raises:
        InputError: They cannot.
    """
    length, fits = recipe.model.max_length, fitting_length(folder, recipe.sampler)
    if fits is not None and length > fits:
        gib = recipe.sampler.kv_cache_gib
        raise InputError(
            f"model.max_length: a sequence of {length:,} tokens does not fit the KV cache of {gib} GiB, which holds "
            f"{fits:,}; lower it, or raise sampler.kv_cache_gib"
        )


def check_room(root: Location, recipe: Recipe, *, num_checkpoints: int, num_parameters: int) -> None:
    """Whether the disk of a run has room for the checkpoints that are still to be written; all of them are kept.

    Args:
        root: The run directory; of an object store nobody can tell.
        recipe: Says how wide a weight is, and whether a stage keeps its state as well.
        num_checkpoints: Training stages to come.
        num_parameters: Of the model; 0 if that is not known.

    Raises:
        InputError: It has not.
    """
    if isinstance(root, ObjectPath) or not num_checkpoints:
        return
    use_gpu = uses_gpu(recipe, has_gpus=may_have_gpus())
    size = precision_of(recipe.trainer, use_gpu=use_gpu).width * num_parameters
    has_state = any(section.save_steps for _, section in recipe.training_sections())
    needed = num_checkpoints * size + (size + STATE_BYTES * num_parameters if has_state else 0)
    free = shutil.disk_usage(root).free
    if needed > free:
        state = ", and the state of one stage," if has_state else ""
        raise InputError(
            f"{root}: {num_checkpoints} checkpoints of {size:,} bytes are to be written{state} and {free:,} bytes are "
            f"free, {needed - free:,} too few; make room, or put the run directory on a larger disk"
        )


def model_folder(backbone: str) -> tuple[str, bool]:
    """Where the driver may read a model's configuration and tokenizer, and whether its weights are there too.

    Of a model in an object store the weights are looked for but not fetched: replicas and trainers do that.

    Raises:
        InputError: There is no such model, or no weights in its place.
    """
    folder = local_model(backbone, weights=False)
    place = location(backbone) if is_uri(backbone) else None
    if not isinstance(place, ObjectPath):
        return folder, True
    if not any(place.glob("*.safetensors")):
        raise InputError(f"{backbone}: {NO_WEIGHTS}")
    return folder, False


def check_verifiers(config: VerifierConfig) -> None:
    """Sees whether the user's own verifiers can be loaded, in processes of their own.

    Raises:
        InputError: One cannot.
    """
    if config.custom:
        from still_ray.verifiers.custom import check_custom_verifiers

        check_custom_verifiers(config.custom)


TRACKER_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}
"""What transformers' callbacks need: one of these packages."""


def check_trackers(config: TrainerConfig) -> None:
    """Sees whether the packages of the experiment trackers are installed.

    Raises:
        InputError: One is not.
    """
    for name in config.report_to:
        packages = TRACKER_PACKAGES[name]
        if not any(find_spec(package) for package in packages):
            raise InputError(f"trainer.report_to: {name} is not installed; pip install {packages[0]}, or leave it out")


def sandbox_problem(files: RunFiles, config: VerifierConfig) -> str | None:
    """Why this machine cannot judge code, if a run has any to judge here; None if it can or need not."""
    domains = {*files.problems.domains, *files.test.domains} - {*config.custom}
    if Domain.CODE not in domains:
        return None
    from still_ray.verifiers.code.sandbox import Sandbox

    return Sandbox(config.code.sandbox, config.code.sandbox_command).problem()


def check_files(data: DataConfig) -> RunFiles:
    """Reads every file of a run once, keeping none of its text.

    Raises:
        InputError: A file is missing or a row is wrong.
    """
    assert data.demonstrations and data.problems and data.test, "resolved by with_world"  # noqa: PT018
    test = validate_problems(data.test)
    problems = validate_problems(data.problems)
    seen = {unspaced_hash(problem.question) for problem in read_problems(data.problems)}
    num_demonstrations, left_out = 0, Counter[str]()
    for demonstration in read_demonstrations(data.demonstrations, left_out):
        num_demonstrations += 1
        seen.add(unspaced_hash(demonstration.question))
    leaked = sum(unspaced_hash(problem.question) in seen for problem in read_problems(data.test))
    return RunFiles(
        demonstrations_path=data.demonstrations,
        problems=problems,
        test=test,
        num_demonstrations=num_demonstrations,
        num_leaked=leaked,
        num_control=left_out.total(),
    )


def with_world(recipe: Recipe, directory: RunDirectory) -> Recipe:
    """The recipe with paths in place of its tiny world, which is written into the run directory.

    Raises:
        InputError: There are not so many problems of these difficulties.
    """
    world = recipe.data.tiny_world
    if world is None:
        return recipe
    _write_world(world, recipe.seed, directory.world)
    data = recipe.data.model_copy(
        update={
            "tiny_world": None,
            "demonstrations": str(directory.world / "demonstrations.jsonl"),
            "problems": str(directory.world / "problems.jsonl"),
            "test": str(directory.world / "test.jsonl"),
        }
    )
    return recipe.model_copy(update={"data": data})


def _write_world(world: TinyWorldConfig, seed: int, place: Location) -> None:
    if isinstance(place, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="still-ray-") as folder:
            _write_world(world, seed, Path(folder))
            upload(Path(folder), place, files_below(Path(folder)))
        return
    try:
        write_world(
            place,
            seed,
            num_demonstrations=world.num_demonstrations,
            num_problems=world.num_problems,
            num_test=world.num_test,
            difficulties=world.difficulties,
        )
    except ValueError as error:
        raise InputError(f"data.tiny_world: {error}") from None
