"""What runs read, by content: a run goes on with what it began with, and runs that read the same can share work."""

from __future__ import annotations

import json
from collections.abc import Callable

from still_ray.algo.ablation.sharing import CONTENT_OF, InputDigests
from still_ray.cli.preflight.files import RunFiles
from still_ray.cli.preflight.models import model_folder, resolve_backbone
from still_ray.cli.preflight.own_code import own_names, own_sources, verifier_sources
from still_ray.config import DataConfig, ForgettingConfig, PromptConfig, Recipe
from still_ray.formats.prompt import load_template
from still_ray.formats.responses.markers import MARKED
from still_ray.location import ObjectPath, location
from still_ray.store.digests import content_digest, file_digest, model_files_digest, text_digest, weights_sample_digest
from still_ray.store.run_inputs import RunInput


def run_inputs(recipe: Recipe, backbone: str, files: RunFiles) -> list[RunInput]:
    """What decides a run besides its recipe and our code: its data, prompt, backbone and the user's own code.

    Args:
        recipe: Resolved, the tiny world written.
        backbone: Its model directory, URI or hub id.
        files: Its data, counted.

    Raises:
        InputError: A file cannot be read.
    """
    data, template = recipe.data, recipe.prompt.template
    several = isinstance(data.demonstrations, tuple)
    rows = [
        *(
            (f"demonstrations.{place}.path" if several else "demonstrations", file.config.path, file.num_rows)
            for place, file in enumerate(files.shown)
        ),
        ("problems", data.problems, files.problems.count),
        ("test", data.test, files.test.count),
    ]
    if data.forgetting is not None and files.forgetting is not None:
        rows.append(("forgetting.path", data.forgetting.path, files.forgetting.count))
    found = [
        RunInput(key=f"data.{name}", place=str(path), digest=content_digest(location(str(path))), num_rows=count)
        for name, path, count in rows
    ]
    if template is not None:  # the built-in one belongs to the code
        found.append(RunInput(key="prompt.template", place=template, digest=text_digest(load_template(template).text)))
    if chat_template := recipe.prompt.chat_template:
        digest = file_digest(location(chat_template)).sha256
        found.append(RunInput(key="prompt.chat_template", place=chat_template, digest=digest))
    if custom := recipe.verifier.custom:
        place = ", ".join(sorted(set(custom.values())))
        found.append(
            RunInput(key="verifier.custom", part="code", place=place, digest=text_digest(verifier_sources(custom)))
        )
    if sources := own_sources(recipe):
        place = ", ".join(own_names(recipe))
        found.append(RunInput(key=CONTENT_OF["own_code"], part="code", place=place, digest=text_digest(sources)))
    beside, weights = model_files_digest(model_folder(backbone)[0]), weights_sample_digest(backbone)
    found += [
        RunInput(key="model.path", part=part, place=backbone, digest=digest)
        for part, digest in (("config, tokenizer or chat template", beside), ("weights", weights))
        if digest is not None
    ]
    return found


class InputReader:
    """Digests of files, each read once."""

    def __init__(self) -> None:
        """Has read nothing."""
        self._known: dict[str, str] = {}

    def digests(self, recipe: Recipe) -> InputDigests:
        """What a run's files hold.

        Args:
            recipe: Resolved, the tiny world written.
        """
        data = recipe.data
        assert data.demonstrations and data.problems and data.test, "resolved by with_world"  # noqa: PT018
        return InputDigests(
            model=self._once(f"model {recipe.model.path}", lambda: _model(recipe.model.path)),
            template=text_digest(_prompt_text(recipe.prompt)),
            demonstrations=self._of_demonstrations(data),
            problems=self._of_file(data.problems),
            test=self._of_file(data.test),
            verifiers=verifier_sources(recipe.verifier.custom),
            own_code=own_sources(recipe),
            forgetting=self._of_forgetting(data.forgetting),
        )

    def _of_forgetting(self, config: ForgettingConfig | None) -> str:
        if config is None:
            return ""
        return text_digest(json.dumps([self._of_file(config.path), config.num_problems, config.alpha]))

    def _of_demonstrations(self, data: DataConfig) -> str:
        """The content of a single file; of several also how they are mixed."""
        if isinstance(data.demonstrations, str):
            return self._of_file(data.demonstrations)
        mix = [[source.label, source.weight, source.general, self._of_file(source.path)] for source in data.sources]
        return text_digest(json.dumps(mix))

    def _of_file(self, path: str) -> str:
        return self._once(path, lambda: file_digest(location(path)).sha256)

    def _once(self, key: str, read: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]


def _prompt_text(prompt: PromptConfig) -> str:
    """Everything that decides a prompt; the template's text alone where nothing else is asked for."""
    text = load_template(prompt.template).text
    chat_template = file_digest(location(prompt.chat_template)).sha256 if prompt.chat_template else None
    told = (prompt.system, prompt.chat_template_kwargs, chat_template)
    if prompt.format in ("auto", MARKED.name) and told == (None, {}, None):
        return text
    return json.dumps([text, prompt.format, *told], sort_keys=True)


def named_inputs(recipe: Recipe) -> InputDigests:
    """The same from the names of the files alone, for a plan on a machine that does not have them."""
    data = recipe.data
    world = data.tiny_world
    if world is None:
        sources = (str(data.demonstrations), str(data.problems), str(data.test))
    else:
        numbers = (world.num_demonstrations, world.num_problems, world.num_test)
        first, second, third = (json.dumps([count, world.difficulties, recipe.seed]) for count in numbers)
        sources = (first, second, third)
    return InputDigests(
        model=recipe.model.path,
        template=json.dumps(recipe.prompt.model_dump(mode="json"), sort_keys=True),
        demonstrations=sources[0],
        problems=sources[1],
        test=sources[2],
        forgetting="" if data.forgetting is None else str(data.forgetting),
    )


def _model(path: str) -> str:
    """A model's content where it is at hand; the name of one on a hub."""
    place = location(resolve_backbone(path))
    if isinstance(place, ObjectPath):
        return f"{place} {place.listing_digest()}"
    if not place.is_dir():
        return path
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return text_digest("\n".join(f"{file.relative_to(place)} {file_digest(file).sha256}" for file in files))
