"""Keeps out of worker logs what no user can act on, at its sources."""

import warnings


def quiet_libraries() -> None:
    """Silences messages about how the libraries call each other; errors and other warnings stay.

    - DeepSpeed 0.19 calls collectives that torch 2.13 renamed: a FutureWarning from every one of them, on every step.
    - Python byte-code listings come from `datasets`, which names a dataset and the result of every `map` by pickling
      functions with dill; dill lists their byte code with `dis` and captures stdout, but Ray Train replaces `print`
      itself, so the listing lands in the log. `still_ray.trainer.data` names its datasets itself.
    """
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def skip_cpu_kernels() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives, which take minutes and serve inference alone."""
    import deepspeed.ops

    deepspeed.ops.__dict__["__compatible_ops__"] = {}
