"""Arguments that a recipe hands on to vLLM, DeepSpeed and TRL: which it may not, and what is wrong with the rest.

`sampler.engine`, `trainer.deepspeed` and `trainer.trl` reach the libraries as they are. What the recipe decides by a
key of its own, and what a promise of a run rests on, is refused here, where a recipe is loaded. Whether the libraries
know the others is asked of their own classes, in a process that imports them: `still_ray.sampler.engine_arguments` and
`still_ray.trainer.library_arguments`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, JsonValue, PydanticUserError, TypeAdapter, ValidationError

from still_ray.extensions import did_you_mean

LIBRARY_KEYS: Final = ("sampler.engine", "trainer.deepspeed", "trainer.trl")
"""Keys of a recipe that hold such arguments; they decide results, and count for nothing while they are empty."""
OPTIONAL_KEYS: Final = (*LIBRARY_KEYS, "trainer.lora", "micro_batch_tokens", "max_sampled_tokens", "overlap")
"""Keys that came later, decide results, and do nothing while they are empty, null or 0; one without a section is a key
of every training method's, or of explore."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Arguments that a recipe may not hand on.

    Attributes:
        names: Dotted names, `*` for any ending.
        reason: Why, and the key of the recipe to use instead if there is one.
    """

    names: tuple[str, ...]
    reason: str


def _refusal(reason: str, *names: str) -> Refusal:
    return Refusal(names=names, reason=reason)


_ROWS = "rows come tokenized, in an order that a run records"
_SCHEDULE: Final = (
    "every stage has a cosine of its own, whose first step has a rate: optimizer.warmup_ratio of the method"
)
_STATES = "a stage resumes by the states that the method's save_steps writes"
_EVALUATION = "trainers evaluate nothing: replicas do, after the stage"
_SYNC_PROOF = "the proof of a weight sync compares the samplers' log-probabilities with the trainer's"

REFUSED: Final[Mapping[str, tuple[Refusal, ...]]] = {
    "sampler.engine": (
        _refusal("model.path decides it", "model", "model_weights", "served_model_name", "hf_config_path", "tokenizer"),
        _refusal("model.path decides it", "revision", "code_revision", "tokenizer_revision", "load_format"),
        _refusal("model.trust_remote_code decides it", "trust_remote_code"),
        _refusal("model.max_length decides it", "max_model_len"),
        _refusal("the recipe's seed decides it, and every request brings its own", "seed"),
        _refusal("sampler.dtype decides it", "dtype"),
        _refusal("sampler.max_num_seqs decides it", "max_num_seqs", "max_num_active_seqs"),
        _refusal("sampler.max_in_flight_factor decides how many requests wait", "max_num_queued_*"),
        _refusal("sampler.gpu_memory_utilization decides it", "gpu_memory_utilization"),
        _refusal(
            "sampler.kv_cache_gib and sampler.gpu_memory_utilization decide it",
            *("kv_cache_memory_bytes", "num_gpu_blocks_override"),
        ),
        _refusal("sampler.engine_statistics decides it", "disable_log_stats"),
        _refusal("sampler.tensor_parallel_size decides it", "tensor_parallel_size"),
        _refusal(
            "a replica is one engine on the devices of sampler.tensor_parallel_size; sampler.num_replicas adds more",
            *("pipeline_parallel_size", "data_parallel_*", "*_context_parallel_size", "distributed_executor_backend"),
            *("nnodes", "node_rank", "master_addr", "master_port", "device_ids", "*elastic_ep*"),
            "ray_workers_use_nsight",
        ),
        _refusal("sync.transport decides how weights arrive", "weight_transfer_config", "worker_*cls", "scheduler_cls"),
        _refusal("a rollout's log-probability is the model's own, before temperature", "logprobs_mode"),
        _refusal(_SYNC_PROOF, "hf_overrides", "model_class_overrides", "kv_sharing_fast_prefill"),
        _refusal(
            "keys and values that are kept outside the engine would outlive a weight sync",
            *("kv_transfer_config", "kv_offloading_*", "ec_transfer_config"),
        ),
        _refusal(
            "explore and evaluate decide how responses are drawn, and the model's files where they end",
            *("generation_config", "override_generation_config", "logits_processors"),
        ),
        _refusal(
            "accepted drafts would not be the policy's own responses",
            *("speculative_config.rejection_sample_method", "speculative_config.synthetic_*"),
        ),
        _refusal(
            "replicas answer prompts of token ids with text",
            *("runner", "convert", "pooler_config", "skip_tokenizer_init", "tokens_only", "tokenizer_mode"),
            *("diffusion_config", "watermark_config"),
        ),
        _refusal("placement: elastic decides when engines sleep", "enable_sleep_mode", "enable_cumem_allocator"),
        _refusal("replicas serve whole policies", "enable_lora", "default_mm_loras"),
        _refusal("credentials come from the environment alone (HF_TOKEN)", "hf_token"),
        _refusal("a replica's log has no progress bars", "use_tqdm_on_load"),
    ),
    "trainer.deepspeed": (
        _refusal(
            "global_batch_size and per_device_batch_size of the method decide it",
            *("train_batch_size", "train_micro_batch_size_per_gpu", "*gradient_accumulation*", "elasticity"),
        ),
        _refusal("optimizer.max_grad_norm of the method decides it", "gradient_clipping"),
        _refusal("trainer.bf16 decides it", "bf16", "bfloat16", "fp16", "amp", "torch_autocast"),
        _refusal("trainer.bf16 decides it", "data_types.param_dtype", "data_types.buffer_dtype"),
        _refusal("gradients are added up in float32, which plan counts with", "data_types.grad_accum_dtype"),
        _refusal(
            "optimizer of the method decides it, and trainer.trl.optim", "optimizer", "zero_force_ds_cpu_optimizer"
        ),
        _refusal(_SCHEDULE, "scheduler"),
        _refusal("trainer.zero_stage decides it", "zero_optimization.stage"),
        _refusal(
            "trainer.offload decides it",
            *("zero_optimization.offload_*.device", "zero_optimization.offload_*.nvme_path", "zero_optimization.cpu_*"),
        ),
        _refusal(
            "every rank holds a share of every weight, from which checkpoints are gathered and samplers are fed",
            *("zero_optimization.stage3_gather_*", "zero_optimization.gather_16bit_*"),
            *("tensor_parallel", "expert_parallel", "sequence_parallel_size", "pipeline", "hybrid_engine"),
        ),
        _refusal(_SYNC_PROOF, "zero_optimization.zero_quantized_*weights", "weight_quantization", "quantize_training"),
        _refusal("all of the model is trained in every step", "compression_training", "progressive_layer_drop"),
        _refusal(
            _STATES,
            *("checkpoint", "datastates_ckpt", "nebula", "zero_optimization.elastic_checkpoint"),
            "zero_optimization.load_from_fp32_weights",
        ),
        _refusal(_ROWS, "curriculum_learning", "data_efficiency", "dataloader_drop_last"),
        _refusal("trainer.report_to decides it", "tensorboard", "wandb", "comet", "csv_monitor"),
        _refusal("it starts runs of its own", "autotuning"),
    ),
    "trainer.trl": (
        _refusal("the run directory decides it", "output_dir"),
        _refusal("the recipe's seed decides it", "seed", "data_seed"),
        _refusal("epochs of the method decides it", "num_train_epochs", "max_steps"),
        _refusal("per_device_batch_size of the method decides it", "per_device_train_batch_size"),
        _refusal("global_batch_size of the method decides it", "gradient_accumulation_steps", "auto_find_batch_size"),
        _refusal(
            "optimizer of the method decides it",
            *("learning_rate", "warmup_*", "weight_decay", "adam_beta2", "max_grad_norm"),
        ),
        _refusal(_SCHEDULE, "lr_scheduler_*"),
        _refusal(
            "max_length of the method decides it: longer rows are left out and counted", "max_length", "truncation_mode"
        ),
        _refusal("scope of the method decides what is learnt", "completion_only_loss", "assistant_only_loss"),
        _refusal(
            "settings of the method decide it",
            *("loss_type", "loss_weights", "beta", "label_smoothing", "desirable_weight", "undesirable_weight"),
        ),
        _refusal(
            "reference of the method decides it; its log-probabilities are computed once and kept",
            *("precompute_ref_*", "sync_ref_model", "ref_model_*", "ld_alpha"),
        ),
        _refusal("trainer.bf16 decides it", "bf16", "fp16"),
        _refusal("trainer.gradient_checkpointing decides it", "gradient_checkpointing"),
        _refusal("trainer.offload_activations decides it", "activation_offloading"),
        _refusal("trainer.use_gpu decides it", "use_cpu"),
        _refusal("trainer.deepspeed holds such arguments", "deepspeed"),
        _refusal("trainer.zero_stage decides how the model is shared", "fsdp*", "parallelism_config"),
        _refusal("trainer.collective_timeout_s decides it", "ddp_timeout"),
        _refusal("the trainer group decides it", "ddp_backend", "local_rank"),
        _refusal("save_steps of the method decides it", "save_*", "enable_jit_checkpoint"),
        _refusal(_STATES, "resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
        _refusal("trainer.logging_steps decides it", "logging_*", "disable_tqdm"),
        _refusal("trainer.report_to decides it", "report_to"),
        _refusal("the names of run and stage decide it", "run_name"),
        _refusal("still-ray publish does it", "push_to_hub", "hub_*"),
        _refusal(
            _ROWS,
            *("remove_unused_columns", "train_sampling_strategy", "length_column_name", "label_names"),
            *("dataloader_drop_last", "dataloader_in_order", "accelerator_config", "shuffle_dataset"),
            *("packing*", "padding_free", "dataset_*"),
        ),
        _refusal(
            _EVALUATION,
            *("eval_*", "per_device_eval_batch_size", "*_full_eval", "load_best_model_at_end"),
            *("metric_for_best_model", "greater_is_better", "do_*", "include_for_metrics", "batch_eval_metrics"),
            "prediction_loss_only",
        ),
        _refusal(
            "model.path and prompt decide it",
            *("model_init_kwargs", "trust_remote_code", "chat_template_path", "eos_token", "pad_token"),
        ),
    ),
}
"""What may not be handed on, by key of the recipe. Source: ours, by the arguments of vllm 0.32, deepspeed 0.19 and
trl 1.16; one that is not here and a later release adds is handed on."""

REFUSED_ON_CPU: Final = {
    "enable_chunked_prefill": "vLLM 0.32 dies of a seeded request whose prompt a CPU computes in two steps"
}
"""Arguments of `sampler.engine` that must not be true on a CPU, with the reason."""
REFUSED_BEFORE_UPDATES_ON_CPU: Final = dict.fromkeys(
    ("speculative_config", "spec_method", "spec_model", "spec_tokens"),
    "on a CPU a vLLM 0.32 that speculates may answer wrongly once its weights were updated; evaluate one model with it",
)
"""Likewise of engines whose weights are replaced while they live. Source: ours, seen with n-grams: of five updates in
four engines three were followed by other greedy tokens than without speculation."""


def _check_refused(arguments: dict[str, JsonValue], key: str) -> dict[str, JsonValue]:
    for name in (*arguments, *dotted_names(arguments)):
        for refusal in REFUSED[key]:
            if any(fnmatchcase(name, pattern) for pattern in refusal.names):
                raise ValueError(f"{name} cannot be handed on: {refusal.reason}")
    return arguments


def dotted_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted name of every value that is not a mapping itself, or is an empty one."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


_Arguments = dict[str, JsonValue]
EngineArguments = Annotated[_Arguments, AfterValidator(lambda given: _check_refused(given, "sampler.engine"))]
DeepspeedArguments = Annotated[_Arguments, AfterValidator(lambda given: _check_refused(given, "trainer.deepspeed"))]
TrlArguments = Annotated[_Arguments, AfterValidator(lambda given: _check_refused(given, "trainer.trl"))]


def is_unused(key: str, value: Any) -> bool:
    """Whether a key is one of `OPTIONAL_KEYS` and nothing is given, so that it decides nothing.

    Args:
        key: Dotted key of a recipe.
        value: What it holds.
    """
    return key in OPTIONAL_KEYS and value in (None, {}, 0)


def used_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a training method, or of exploration, as plain values, without the keys that are unused."""
    return {key: value for key, value in section.items() if not is_unused(key, value)}


def field_problems(kind: type[Any], given: Mapping[str, Any], *, key: str, library: str) -> list[str]:
    """What is wrong with arguments for a dataclass of a library: unknown names, and values that its types do not allow.

    Args:
        kind: The dataclass.
        given: Arguments by name, as JSON has them.
        key: Dotted key of the recipe that holds them.
        library: Its name and version, for the text.
    """
    known = {field.name: field.type for field in dataclasses.fields(kind) if not field.name.startswith("_")}
    problems = [
        f"{key}.{name}: {library} knows no such argument{did_you_mean(name, known)}"
        for name in given
        if name not in known
    ]
    for name in (name for name in given if name in known):
        if reason := _misfit(_resolved(known[name], kind), given[name]):
            problems.append(f"{key}.{name}: {reason} ({library})")
    return problems


def _resolved(hint: Any, kind: type[Any]) -> Any:
    """A field's type; anything at all where its text names what is not there outside of type checkers."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, vars(sys.modules[kind.__module__]))  # noqa: S307 - an annotation of the library
    except NameError:
        return Any


def _misfit(hint: Any, value: Any) -> str:
    """Why a value is not of a type, as JSON has it; "" if it is, or if nobody can tell."""
    enums = [part for part in _parts(hint) if isinstance(part, type) and issubclass(part, Enum)]
    if enums and isinstance(value, str):
        names = [text for kind in enums for member in kind for text in (member.name, member.value)]
        return "" if value in names else f"unknown value {value!r}{did_you_mean(value, map(str, names))}"
    try:
        adapter: TypeAdapter[Any] = _adapter(hint)
    except PydanticUserError:  # a type that has no schema
        return ""
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        within = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in str(value))
        return f"{within + ': ' if within else ''}{first['msg']}, not {json.dumps(first['input'], default=str)}"
    return ""


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a class that has a configuration of its own takes no other
        return TypeAdapter(hint)


def _parts(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        return typing.get_args(hint)
    return _parts(typing.get_args(hint)[0]) if origin is Annotated else (hint,)
