"""Asks vLLM's own classes about the arguments of `sampler.engine`, in a process of its own.

`python -m still_ray.sampler.engine_arguments` reads them as JSON and prints what is wrong with them, as a JSON list in
the last line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from still_ray.config.library_arguments import field_problems

KEY = "sampler.engine"


def engine_problems(given: Mapping[str, Any]) -> list[str]:
    """What vLLM would not take, a line each; loads vLLM.

    Args:
        given: Arguments by the names of `EngineArgs`.
    """
    import vllm
    from vllm import EngineArgs
    from vllm.config import SpeculativeConfig

    library = f"vLLM {vllm.__version__}"
    problems = field_problems(EngineArgs, given, key=KEY, library=library)
    speculative = given.get("speculative_config")
    if isinstance(speculative, dict):  # a plain mapping to `EngineArgs`, which builds this of it
        problems += field_problems(SpeculativeConfig, speculative, key=f"{KEY}.speculative_config", library=library)
    return problems


if __name__ == "__main__":
    sys.stdout.write(json.dumps(engine_problems(json.load(sys.stdin))) + "\n")
