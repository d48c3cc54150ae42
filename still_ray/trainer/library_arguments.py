"""Asks DeepSpeed's and TRL's own classes about the arguments of `trainer.deepspeed` and `trainer.trl`.

`python -m still_ray.trainer.library_arguments` reads JSON of the fields of `Asked` and prints what is wrong, as a JSON
list in the last line; the environment of `trainer_environment` must be set.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.config.library_arguments import field_problems
from still_ray.config.methods import GROUP
from still_ray.extensions import did_you_mean, load_path


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked.

    Attributes:
        deepspeed: Arguments of `trainer.deepspeed`.
        trl: Arguments of `trainer.trl`.
        zero_stage: The ZeRO stage that the recipe asks for.
        methods: Paths of the heavy halves of the recipe's training methods.
    """

    deepspeed: Mapping[str, Any]
    trl: Mapping[str, Any]
    zero_stage: int
    methods: Sequence[str]


def trl_problems(given: Mapping[str, Any], kinds: Sequence[type[Any]]) -> list[str]:
    """What the configurations of a recipe's methods would not take, a line each.

    An argument must be known to one of them; each is given those that it knows.

    Args:
        given: Arguments by name.
        kinds: TRL's configuration of each method.
    """
    import trl

    of_kind = {kind: {field.name for field in dataclasses.fields(kind)} for kind in dict.fromkeys(kinds)}
    library, known = f"TRL {trl.__version__}", set().union(*of_kind.values())
    names = ", ".join(kind.__name__ for kind in of_kind)
    problems = [
        f"trainer.trl.{name}: {names} of {library} know no such argument{did_you_mean(name, known)}"
        for name in given
        if name not in known
    ]
    for kind, fields in of_kind.items():
        theirs = {name: value for name, value in given.items() if name in fields}
        problems += field_problems(kind, theirs, key="trainer.trl", library=library)
    return list(dict.fromkeys(problems))


class _Read(dict[str, Any]):
    """A configuration that notes which names are looked for in it, with the value that stands for a missing one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({key: _Read(value) if isinstance(value, dict) else value for key, value in values.items()})
        self.defaults: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.defaults.setdefault(key, default)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.defaults.setdefault(key, None)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # with an own one, a section that is unpacked into a class is read by `__getitem__`

    def __contains__(self, key: object) -> bool:
        self.defaults.setdefault(str(key), None)
        return super().__contains__(key)


def deepspeed_problems(given: Mapping[str, Any], *, zero_stage: int) -> list[str]:
    """What DeepSpeed would not take, or would leave unread, a line each.

    Its configuration is built; a section that is a pydantic model refuses what it does not know. The others ask for
    the names that they know and leave the rest alone, so what they ask for is noted.

    Args:
        given: Arguments as DeepSpeed's JSON has them.
        zero_stage: The ZeRO stage.
    """
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    library = f"DeepSpeed {deepspeed.__version__}"
    zero = {"stage": zero_stage, **_section(given, "zero_optimization")}
    asked = _Read({**given, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1})
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        where = next((f"{key}." for key, value in given.items() if isinstance(value, dict) and name in value), "")
        return [f"trainer.deepspeed.{where}{name}: {_pydantic_text(first, library, error.title)}"]
    except Exception as error:  # whatever its many readers raise of a value that they cannot use
        text = " ".join(str(error).split()) or type(error).__name__
        wrong = list(_wrong_types(given, asked, "trainer.deepspeed", library))
        return wrong or [f"trainer.deepspeed: {library} refuses it: {text}"]
    found = (
        *_unread(given, asked, "trainer.deepspeed", library),
        *_wrong_types(given, asked, "trainer.deepspeed", library),
    )
    return list(found)


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name, {})
    return found if isinstance(found, dict) else {}


def _pydantic_text(error: Any, library: str, model: str) -> str:
    if error["type"] != "extra_forbidden":
        return f"{error['msg']}, not {error['input']!r} ({library})"
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    found = next((kind for kind in DeepSpeedConfigModel.__subclasses__() if kind.__name__ == model), None)
    name = str(error["loc"][-1])
    return f"{library} knows no such argument{did_you_mean(name, found.model_fields if found else ())}"


def _unread(given: Mapping[str, Any], asked: _Read, key: str, library: str) -> Iterator[str]:
    """Names that nothing looked for."""
    for name, value in given.items():
        inner = dict.get(asked, name)
        if name not in asked.defaults:
            yield f"{key}.{name}: {library} knows no such argument{did_you_mean(name, asked.defaults)}"
        elif isinstance(inner, _Read) and inner.defaults:
            yield from _unread(value, inner, f"{key}.{name}", library)


def _wrong_types(given: Mapping[str, Any], asked: _Read, key: str, library: str) -> Iterator[str]:
    """Values of another type than what stands for a missing one."""
    for name, value in given.items():
        inner, default = dict.get(asked, name), asked.defaults.get(name)
        if isinstance(inner, _Read):
            yield from _wrong_types(value, inner, f"{key}.{name}", library)
        elif isinstance(default, bool | int | float | str) and not _is_alike(value, default):
            yield f"{key}.{name}: must be of type {type(default).__name__}, not {json.dumps(value)} ({library})"


def _is_alike(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    numbers = (int, float)
    return isinstance(value, numbers) if isinstance(default, numbers) else isinstance(value, str)


def problems_of(asked: Asked) -> list[str]:
    """What is wrong with any of the arguments, a line each; loads torch, DeepSpeed and TRL."""
    kinds = [load_path(path, group=GROUP).config for path in asked.methods] if asked.trl else []
    trl = trl_problems(asked.trl, kinds) if asked.trl else []
    return trl + (deepspeed_problems(asked.deepspeed, zero_stage=asked.zero_stage) if asked.deepspeed else [])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(problems_of(Asked(**json.load(sys.stdin)))) + "\n")
