"""What a person reads of the exceptions of other libraries: what is wrong and the key that mends it, in one line.

The exceptions are raised by the pinned libraries where that takes milliseconds. What needs an engine, a GPU or the
network is quoted from their sources, and a test looks it up there.
"""

import errno
import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydantic
import pytest
import ray
import torch
import torch.distributed as dist
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from safetensors.torch import load_file

from still_ray.actors.pool.causes import WORDS, alike, cause_of, comes_again, has_reason, is_out_of_memory
from still_ray.causes import KNOWN, MEMORY, Place, may_pass
from still_ray.config import SamplerConfig, TrainerConfig, VerifierConfig
from still_ray.config.schema import ModelConfig
from still_ray.methods.dpo import DpoConfig
from still_ray.sampler.protocol import SamplerDeadError
from still_ray.types import InputError, RunError
from still_ray.weight_sync.errors import SyncError

REPLICA, DPO = Place(kind="replica"), Place(kind="trainer", section="dpo")
IDENTITY = "94eb38" * 9
ENDED = "The actor died unexpectedly before finishing this task.\n\tactor_id: {}\n\tname: replica-0\n{}"
"""How Ray words the end of an actor."""
OUT_OF_MEMORY = f"""\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: {IDENTITY}) was \
22.41GB used / 23.54GB limit (0.952000)
OOM kill reason: Memory usage 24062619648B exceeded threshold of 24012256665B (95.0% of 25276059648B limit)
Object store memory usage: [- objects spillable: 0
- bytes in use: 0]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(c6491346a60a33ed2693836101000000): job ID=01000000, task name=replica-0:A.__init__, pid=7487)
]
To see more information about memory usage on this node, use `ray logs raylet.out -ip 192.0.2.2`
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
7487\t14.21\tray::_RayTrainWorker__execute.get_next
7519\t5.16\tray::replica-0
7259\t0.87\t/opt/venv/bin/python -u /opt/venv/bin/still-ray run recipe.yaml
7486\t0.74\tpython -c import time; time.sleep(60)
7486\t0.04\tray::IDLE
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/debug-memory.html. \
Consider provisioning more memory on this node or reducing task parallelism by requesting more CPUs per task."""
"""What Ray 2.60 says of a worker that its memory monitor killed, as it came from a real one, shortened."""
LENGTH = (
    "User-specified max_model_len (30000) is greater than the derived max_model_len (max_position_embeddings=4096.0 or "
    "model_max_length=None in model's config.json). To allow overriding this maximum, set the env var "
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution. If the model "
    "uses absolute position encoding, positions exceeding derived_max_model_len will cause a CUDA array out-of-bounds "
    "error."
)
CACHE = (
    "To serve at least one request with the model's max seq len (30000), (2.52 GiB KV cache is needed, which is larger "
    "than the available KV cache memory (1.0 GiB). Based on the available memory, the estimated maximum model length "
    "is 11904. Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or "
    "decreasing `max_model_len` when initializing the engine. "
    "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ "
    "for more details."
)
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 79.11 GiB of which 1.02 GiB is "
    "free. Including non-PyTorch memory, this process has 78.08 GiB memory in use. See documentation for "
    "Memory Management (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)


def raised_by(action: Callable[[], object]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def model(folder: Path, config: str, weights: bytes = b"") -> str:
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


class Settings(pydantic.BaseModel):
    """Something that pydantic checks, as vLLM's configuration is."""

    length: int

    @pydantic.model_validator(mode="after")
    def _short(self) -> "Settings":
        if self.length > 4096:
            raise ValueError(LENGTH)
        return self


def too_long() -> Exception:
    return raised_by(lambda: Settings(length=30_000))


@pytest.mark.parametrize(
    ("error", "place", "cause"),
    [
        (
            too_long(),
            REPLICA,
            "model.max_length (30000) is more than the model's 4096 positions (max_position_embeddings of its "
            "config.json): lower model.max_length",
        ),
        (
            ValueError(CACHE),
            REPLICA,
            "one sequence of model.max_length (30000 tokens) needs 2.52 GiB of KV cache and there are 1.0 GiB, enough "
            "for 11904 tokens: lower model.max_length, or raise sampler.kv_cache_gib (CPU) or "
            "sampler.gpu_memory_utilization (GPU)",
        ),
        (
            ValueError(re.sub("Based on .* 11904. ", "", CACHE)),
            REPLICA,
            "one sequence of model.max_length (30000 tokens) needs 2.52 GiB of KV cache and there are 1.0 GiB: lower "
            "model.max_length, or raise sampler.kv_cache_gib (CPU) or sampler.gpu_memory_utilization (GPU)",
        ),
        (
            torch.OutOfMemoryError(CUDA),
            DPO,
            "GPU 3 has no memory left: 2.00 GiB were wanted and 1.02 GiB of 79.11 GiB are free; lower "
            "dpo.per_device_batch_size, dpo.max_length or trainer.num_workers (ranks of one machine share its memory), "
            "or set trainer.offload (GPU)",
        ),
        (
            torch.OutOfMemoryError(CUDA),
            replace(DPO, size_key="micro_batch_tokens"),
            "GPU 3 has no memory left: 2.00 GiB were wanted and 1.02 GiB of 79.11 GiB are free; lower "
            "dpo.micro_batch_tokens, dpo.max_length or trainer.num_workers (ranks of one machine share its memory), "
            "or set trainer.offload (GPU)",
        ),
        (
            ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY),
            REPLICA,
            "Ray killed it for lack of memory on its node 192.0.2.2 (22.41 of 23.54 GB used): "
            "_RayTrainWorker__execute.get_next 14.21 GB, replica-0 5.16 GB, python still-ray 0.87 GB; lower "
            "sampler.max_num_seqs, model.max_length, sampler.num_replicas or (CPU) sampler.kv_cache_gib",
        ),
        (
            dist.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error, NCCL version 2.27\n"
                "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
            ),
            DPO,
            "NCCL: Cuda failure 2 'out of memory'",
        ),
        (
            RuntimeError(
                "[/__w/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:64177: Connection reset "
                "by peer. This is typically caused by the remote worker exiting. See its log for the root cause."
            ),
            DPO,
            "a rank that it works with is gone (gloo: Connection reset by peer)",
        ),
        (KeyError("model.layers.28.mlp"), REPLICA, "KeyError: 'model.layers.28.mlp'"),
        (AssertionError(), REPLICA, "AssertionError"),
        (InputError("a: b\n c"), REPLICA, "a: b c"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a/model.safetensors"),
            REPLICA,
            "/runs/a/model.safetensors: No space left on device",
        ),
        (
            RuntimeError("Sizes differ: 5 and 7.\n\nFor debugging see https://pytorch.org/docs/x.html for more."),
            REPLICA,
            "RuntimeError: Sizes differ: 5 and 7.",
        ),
        (ValueError("No file. Visit https://a.org/b.c?d for help. Or not."), REPLICA, "ValueError: No file. Or not."),
        (ExceptionGroup("two", [InputError("the first"), InputError("the second")]), REPLICA, "the first"),
    ],
)  # fmt: skip
def test_a_cause_says_what_is_wrong_and_the_key_that_mends_it(error: Exception, place: Place, cause: str) -> None:
    assert cause_of(error, place) == cause


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        (lambda folder: torch.empty(10**15), "the machine has no memory left: 4000000000000000 bytes were wanted; "),
        (
            lambda folder: load_file(Path(model(folder, "{}", b"version https://git-lfs.github.com/spec/v1"))
                                     / "model.safetensors"),
            "a file of weights is no safetensors file (header too large): it was cut off or is a git-lfs pointer; ",
        ),
        (
            lambda folder: transformers.AutoConfig.from_pretrained(model(folder, '{"model_type": "qwen9"}')),
            "transformers does not know the model type qwen9: give another model.path",
        ),
        (
            lambda folder: transformers.AutoConfig.from_pretrained(model(folder, "{}")),
            "{folder} has no config.json with a model_type: model.path must be a HF model directory or a hub id",
        ),
        (
            lambda folder: transformers.AutoConfig.from_pretrained(
                model(folder, '{"model_type": "m", "auto_map": {"AutoConfig": "a.B"}}'), trust_remote_code=False
            ),
            "the model comes with Python code of its own: set model.trust_remote_code to true if you trust it",
        ),
        (
            lambda folder: transformers.AutoConfig.from_pretrained("nobody/nothing", local_files_only=True),
            "the model is not on this machine and the hub cannot be reached: give its folder as model.path, or see ",
        ),
        (lambda folder: (folder / "none").read_bytes(), "{folder}/none: No such file or directory"),
        (
            lambda folder: Settings.model_validate({"length": "long"}),
            "length: Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)  # fmt: skip
def test_causes_of_what_the_libraries_raise(tmp_path: Path, action: Callable[[Path], object], cause: str) -> None:
    said = cause_of(raised_by(lambda: action(tmp_path)))
    assert said.startswith(cause.replace("{folder}", str(tmp_path))) and len(said.splitlines()) == 1
    assert "http" not in said


TRACEBACK = """The actor died because of an error raised in its creation task, ray::replica-0:SamplerReplica.__init__()
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/opt/still_ray/actors/sampling/replica.py", line 118, in _start
    self._sampler = start_engine(self._settings)
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{}"""
"""What Ray keeps of an exception in an actor's constructor."""


def failed_start(said: str) -> Exception:
    error: Exception = ray.exceptions.RayActorError(IDENTITY, TRACEBACK.format(said), actor_init_failed=True)
    return error


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            f"  Value error, {LENGTH} [type=value_error, input_value=ArgsKwargs((), {{'model': ...}}), "
            "input_type=ArgsKwargs]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            "model.max_length (30000) is more than the model's 4096 positions",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings\nlength\n"
            "  Input should be a valid integer [type=int_parsing, input_value='long', input_type=str]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/int_parsing",
            "length Input should be a valid integer",
        ),
        ("ValueError: " + CACHE, "one sequence of model.max_length (30000 tokens) needs 2.52 GiB of KV cache"),
        ("still_ray.types.RunError: no such column: x", "no such column: x"),
        ("vllm.exceptions.SomeError: first line\nsecond line", "SomeError: first line second line"),
        ("ModuleNotFoundError: No module named 'flash'", "ModuleNotFoundError: No module named 'flash'"),
    ],
)
def test_of_a_constructor_that_raised_ray_keeps_a_text_whose_cause_is_found(said: str, cause: str) -> None:
    found = cause_of(failed_start(said), REPLICA)
    assert found.startswith(cause) and len(found.splitlines()) == 1 and "http" not in found


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda error: ray.exceptions.RayTaskError("f", "Traceback ...", error),
        lambda error: ray.exceptions.RayTaskError("f", "Traceback ...", error).as_instanceof_cause(),
        lambda error: UserExceptionWithTraceback(error, "Traceback ..."),
        lambda error: WorkerHealthCheckFailedError("A worker health check failed.", failure=error),
        ray.train.ControllerError,
        lambda error: ray.train.WorkerGroupError("rank 1: Traceback", {1: error}),
        lambda error: ray.train.WorkerGroupError(
            "ranks", {0: RuntimeError("gloo/pair.cc:553] Connection closed by peer"), 1: error}
        ),
    ],
)
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RunError("no such column"), "no such column"),
        (ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY), "Ray killed it for lack of memory on its node 192.0.2.2"),
        (too_long(), "model.max_length (30000) is more than the model's 4096 positions"),
    ],
)
def test_however_deep_ray_wraps_it(wrapped: Callable[[Exception], Exception], error: Exception, cause: str) -> None:
    nested = wrapped(wrapped(error))
    assert cause_of(nested).startswith(cause)
    assert is_out_of_memory(nested) is cause.startswith("Ray killed")


@pytest.mark.parametrize(
    "kind", [kind for kinds, _ in WORDS for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
)
def test_an_error_of_rays_is_told_without_its_own_text(kind: type[Exception]) -> None:
    error = kind.__new__(kind)  # whatever it is made of
    assert isinstance(error, ray.exceptions.RayError)
    assert IDENTITY not in cause_of(error) and len(cause_of(error).split()) < 12


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ray.exceptions.OwnerDiedError(IDENTITY, b"", ""), "the process that held the data ended"),
        (ray.exceptions.ObjectReconstructionFailedError(IDENTITY), "the data was lost with the node that held it"),
        (ray.exceptions.RaySystemError(f"lost, worker ID: {IDENTITY}"), "System error: lost,"),
        (ray.exceptions.RuntimeEnvSetupError("pip: no such package"), "Failed to set up runtime environment. pip: no "),
        (RunError("no room for 0123456789abcdef0123456789abcdef"), "no room for 0123456789abcdef0123456789abcdef"),
    ],
)
def test_a_failure_in_words(error: Exception, words: str) -> None:
    assert cause_of(error).startswith(words)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            f"The actor is dead because its owner has died. Owner Id: {IDENTITY}",
            "the process that had started it ended",
        ),
        ("The actor is dead because its node has died. Node Id: ", "its node was lost"),
        ("The actor is dead because it was killed by `ray.kill`.", "it was killed"),
        (
            "Worker exit type: USER_ERROR Worker exit detail: Worker exits with an exit code 3.",
            "its process ended with status 3",
        ),
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker unexpectedly exits with a connection error code 2. End of file. There are some potential root "
            "causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage.",
            "its process died",
        ),
        (OUT_OF_MEMORY, "Ray killed it for lack of memory on its node 192.0.2.2 (22.41 of 23.54 GB used)"),
        ("", "it ended"),
    ],
)
def test_the_end_of_an_actor_in_words(end: str, words: str) -> None:
    error = ray.exceptions.RayActorError(IDENTITY, ENDED.format(IDENTITY, end))
    assert cause_of(error).startswith(words)
    assert "root causes" not in cause_of(error) and IDENTITY not in cause_of(error)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:77"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (ValueError("Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (TimeoutError(), True),
        (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), True),
        (OSError(errno.ESTALE, "Stale file handle", "/models/a"), True),
        (InputError("/models/nccl/gloo: no such model directory"), False),
        (LocalEntryNotFoundError("Cannot find the requested files in the disk cache"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/models/timed out"), False),
        (ValueError("Model architectures ['Qwen9ForCausalLM'] are not supported for now."), False),
        (KeyError("model.layers.28.mlp"), False),
        (MemoryError(), False),
        (AttributeError("no such layer"), False),
        (too_long(), False),
        (ValueError(CACHE), False),
    ],
)
def test_errors_of_peers_the_network_and_devices_in_use_may_pass_and_others_come_again(
    error: Exception, *, passes: bool
) -> None:
    assert may_pass(error) is passes


@pytest.mark.parametrize(
    ("error", "again", "reason"),
    [
        (failed_start("still_ray.types.RunError: no such model"), True, True),
        (failed_start(f"{SamplerDeadError.__module__}.SamplerDeadError: the GPU has no memory left"), False, True),
        (failed_start(f"{SamplerDeadError.__module__}.SamplerDeadError: Connection closed by peer"), False, False),
        (ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY), False, True),
        (ray.exceptions.RayActorError(IDENTITY, ENDED.format(IDENTITY, "its node has died.")), False, False),
        (ray.exceptions.RayTaskError("f", "Traceback ...", ValueError("no such key")), True, True),
    ],
)
def test_which_failed_starts_would_fail_again_and_which_have_a_reason(
    error: Exception, *, again: bool, reason: bool
) -> None:
    assert (comes_again(error), has_reason(error)) == (again, reason)


def test_the_same_cause_is_the_same_whatever_was_free_and_whoever_had_it() -> None:
    others = OUT_OF_MEMORY.replace("22.41GB", "23.02GB").replace("ray::replica-0", "ray::replica-7")
    one, other = (cause_of(ray.exceptions.OutOfMemoryError(text)) for text in (OUT_OF_MEMORY, others))
    assert one != other and alike(one) == alike(other)
    free = "Free memory on device cuda:0 ({}/79.1 GiB) on startup is less than desired"
    assert len({alike(cause_of(ValueError(free.format(amount)))) for amount in ("3.1", "41.07")}) == 1
    assert alike(one) != alike(cause_of(too_long()))


def test_a_long_text_is_cut() -> None:
    assert len(cause_of(ValueError("x" * 10_000))) < 1000


def test_a_gated_model_is_told_with_what_opens_it() -> None:
    error = GatedRepoError.__new__(GatedRepoError)
    error.args = (
        "401 Client Error.\n\nCannot access gated repo for url https://huggingface.co/a/b/resolve/main/c.json.",
    )
    assert cause_of(error).startswith("the hub gives this model to those only who accepted its terms")


KEY = re.compile(r"\b(model|sampler|verifier|trainer|dpo)\.([a-z_]+)")
SECTIONS: dict[str, type[pydantic.BaseModel]] = {
    "model": ModelConfig,
    "sampler": SamplerConfig,
    "verifier": VerifierConfig,
    "trainer": TrainerConfig,
    "dpo": DpoConfig,
}


def test_every_key_that_is_named_is_one_of_the_recipe() -> None:
    places = (DPO, replace(DPO, size_key="micro_batch_tokens"), REPLICA, Place(kind="verifier"), Place())
    assert {place.kind for place in places} == set(MEMORY)
    texts = [known.means for known in KNOWN] + [place.less_memory for place in places]
    keys = {key for text in texts for key in KEY.findall(text)}
    assert len(keys) > 8
    assert [key for key in keys if key[1] not in SECTIONS[key[0]].model_fields] == []


SOURCES = {
    "vllm/config/model.py": (
        "is greater ", "than the derived max_model_len (", "must be divisible by tensor parallel size",
    ),
    "vllm/v1/core/kv_cache_utils.py": (
        "No available memory for the cache blocks", "max seq len ", "GiB KV ", "the estimated maximum model length is ",
        "serve even a single token",
    ),
    "vllm/v1/worker/cpu_worker.py": ("allocation is less than requested memory for kv", "Available memory on node "),
    "vllm/v1/worker/utils.py": ("Free memory on device ", "on startup "),
    "vllm/platforms/cuda.py": ("Bfloat16 is only supported on GPUs ",),
    "vllm/model_executor/models/registry.py": ("Model architectures {architectures} are not supported",),
    "huggingface_hub/utils/_http.py": ("Repository Not Found for url: ", "Cannot access gated repo for url "),
    "transformers/utils/hub.py": ("does not appear to have a file named ", "is not a local folder and is not a valid "),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_quoted_is_what_the_installed_library_says(name: str) -> None:
    package = importlib.util.find_spec(name.partition("/")[0])
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent.parent / name).read_text()
    assert [text for text in SOURCES[name] if text not in source] == []


def test_what_we_say_ourselves_is_not_taken_for_a_lack_where_it_is_heard() -> None:
    """A replica hears that the trainer's first rank had no memory, and must not ask for fewer replicas."""
    told = SyncError("weight broadcast failed: given up by rank 0: no memory for a block: CUDA out of memory")
    assert cause_of(told, Place(kind="replica")) == str(told)
