"""`plan`: the committed recipes fit where they say, and what does not fit is refused with the key to change."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from still_ray.algo.planning.bundles import PLACEMENTS
from still_ray.algo.planning.cluster import NodeType, fleet_of
from still_ray.cli.main import app
from still_ray.config import load_recipe
from still_ray.types import InputError

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "jobs"
MACHINES = {
    "qwen2.5-32b": ["--nodes", "3", "--devices-per-node", "8", "--host-memory-gib", "1024"],
    "qwen2.5-7b": ["--devices-per-node", "8", "--host-memory-gib", "512"],
    "qwen2.5-1.5b": ["--devices-per-node", "1", "--host-memory-gib", "128"],
    "qwen2.5-1.5b-24gb": ["--devices-per-node", "1", "--device-memory-gib", "24", "--host-memory-gib", "64"],
    "qwen2.5-7b-24gb-lora": ["--devices-per-node", "1", "--device-memory-gib", "24", "--host-memory-gib", "64"],
    "qwen2.5-32b-long": ["--devices-per-node", "8", "--device-memory-gib", "80", "--host-memory-gib", "1024"],
    "qwen2.5-32b-lora": ["--devices-per-node", "8", "--device-memory-gib", "80", "--host-memory-gib", "1024"],
}
APART = ["--set", "placement=dedicated", "--set", "sampler.num_replicas=2"]
"""The 32B recipe with a machine for its replicas beside those of its ranks."""


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def planned(name: str, *options: str, machines: list[str] | None = None) -> Result:
    chosen = MACHINES[name] if machines is None else machines
    return CliRunner().invoke(app, ["plan", str(JOBS / f"{name}.yaml"), *chosen, *options])


def refused_keys(result: Result) -> list[str]:
    """The keys of the errors that the command printed, all of which its last line names."""
    assert result.exit_code == 2, result.output
    (last,) = result.stderr.splitlines()
    keys = [line.split(": ")[1] for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert all(key in last for key in keys), last
    return keys


# -- the committed recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_a_committed_recipe_fits_the_machines_that_it_names(name: str) -> None:
    command = next(line for line in (JOBS / f"{name}.yaml").read_text().splitlines() if "still-ray plan" in line)
    assert set(MACHINES[name]) <= set(command.split())
    result = planned(name, "--json")
    values = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert values["fits"] is True
    held = [role for machine in values["placement"] for role in machine["roles"]]
    recipe = load_recipe(JOBS / f"{name}.yaml")
    assert held.count("trainer") == recipe.trainer.num_workers
    assert held.count("sampler") == recipe.sampler.num_replicas


@pytest.mark.parametrize("name", MACHINES)
def test_a_committed_recipe_moves_its_bfloat16_model_and_is_warned_of_where_it_would_not(name: str) -> None:
    keys = [finding["key"] for finding in json.loads(planned(name, "--json").stdout)["findings"]]
    assert not [key for key in keys if key.endswith("learning_rate")]
    idle = ["--set", "dpo.optimizer.learning_rate=5e-7", "--set", "dpo.epochs=1", "--set", "dpo.global_batch_size=96"]
    result = planned(name, *idle)
    assert result.exit_code == 0, "it runs, and learns next to nothing"
    (warning,) = [line for line in result.stdout.splitlines() if "learning_rate: " in line]
    assert warning.startswith("warning: rounds.") and ".dpo.optimizer.learning_rate: " in warning
    assert "global_batch_size below 96" in warning


def test_the_tables_are_those_of_the_numbers() -> None:
    result = planned("qwen2.5-32b")
    assert result.exit_code == 0
    assert "32,763,876,352 parameters" in result.stdout
    assert result.stdout.splitlines()[-1] == "fits"


@pytest.mark.parametrize("gib", [24, 64])
def test_the_laptops_recipe_fits_a_laptop(gib: int) -> None:
    result = planned("laptop", "--json", machines=["--host-memory-gib", str(gib)])
    values = json.loads(result.stdout)
    assert (result.exit_code, values["fits"]) == (0, True), result.stderr
    decided = values["decided"]
    assert decided["sampler.num_replicas"] == decided["trainer.num_workers"] == 1
    assert decided["imitate.max_length"] >= 1536, "rows that hold a response of 1,024 tokens and its prompt"


def test_the_demo_fits_any_machine() -> None:
    result = CliRunner().invoke(app, ["plan", str(JOBS / "demo.yaml"), "--host-memory-gib", "8"])
    assert (result.exit_code, result.stderr) == (0, "")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer.num_workers=8"], "trainer.num_workers"),
        (["trainer.zero_stage=2"], "trainer.zero_stage"),
        (["trainer.gradient_checkpointing=false"], "trainer.gradient_checkpointing"),
        (["imitate.max_length=40000"], "imitate.max_length"),  # more than the model has positions
        (["imitate.micro_batch_tokens=40000"], "imitate.micro_batch_tokens"),
        (["dpo.max_length=20000"], "rounds.2.dpo.max_length"),
        (["trainer.sequence_parallel_size=16"], "trainer.sequence_parallel_size"),  # 40 heads
        (["sampler.tensor_parallel_size=1"], "sampler.tensor_parallel_size"),  # 61 GiB of weights, no cache
        (["sampler.tensor_parallel_size=6"], "sampler.tensor_parallel_size"),  # 40 heads
        (["sampler.tensor_parallel_size=16", "sampler.gpus_per_replica=16"], "sampler.tensor_parallel_size"),
        (["sampler.gpus_per_replica=1.0"], "sampler.gpus_per_replica"),
        (["sampler.gpus_per_replica=8"], "sampler.gpus_per_replica"),  # four of them would lie idle
        (["trainer.node_labels={still-ray.io/role: trainer}"], "trainer.node_labels"),
        # no room for weights that arrive beside the ranks
        ([*APART[1::2], "sampler.gpu_memory_utilization=0.99"], "sampler.gpu_memory_utilization"),
        (["sampler.num_replicas=7"], "sampler.num_replicas"),  # 28 GPUs of 24
        ([*APART[1::2], "sampler.num_replicas=3"], "trainer.num_workers"),  # the same, side by side
        (["model.max_length=40000"], "model.max_length"),
        (["trainer.cpus_per_worker=200.0"], "trainer.num_workers"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_key_to_change(overrides: list[str], key: str) -> None:
    options = [part for override in overrides for part in ("--set", override)]
    assert key in refused_keys(planned("qwen2.5-32b", *options))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("imitate.global_batch_size=100", "imitate.global_batch_size (100) must be a multiple of"),
        ("evaluate.max_tokens=30000", "evaluate.max_tokens (30000) must leave room for the prompt"),
        ("trainer.zero_stage=1", "trainer.zero_stage"),
        ("model.path=Somebody/Else-7B", "model.path: Somebody/Else-7B is no directory here"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(override: str, said: str) -> None:
    result = planned("qwen2.5-32b", "--set", override)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert said in result.stderr
    assert result.stdout == ""


def test_smaller_machines_are_refused() -> None:
    assert refused_keys(planned("qwen2.5-1.5b", "--set", "placement=dedicated")) == ["trainer.num_workers"]
    assert refused_keys(planned("qwen2.5-7b", "--device-memory-gib", "24"))[0].startswith("trainer.")
    small_hosts = ["--host-memory-gib", "180", "--set", "sync.transport=object_store"]
    assert "sync.transport" in refused_keys(planned("qwen2.5-32b", *small_hosts))
    assert refused_keys(planned("qwen2.5-32b", "--disk-gib", "500")) == ["imitate.save_steps"]


def test_only_as_adapters_a_model_fits_the_small_machine() -> None:
    assert refused_keys(planned("qwen2.5-7b-24gb-lora", "--set", "trainer.lora=null"))[0].startswith("trainer.")
    result = planned("qwen2.5-32b-lora", "--set", "trainer.lora=null")
    assert "trainer.num_workers" in refused_keys(result) and "trainer.lora: {} trains adapters alone" in result.stdout
    assert refused_keys(planned("qwen2.5-32b-lora", "--set", "trainer.lora.targets=[q_proj, wk]")) == [
        "trainer.lora.targets"
    ]


def test_a_recipe_for_gpus_is_refused_without_any() -> None:
    keys = refused_keys(planned("qwen2.5-32b", machines=["--host-memory-gib", "64"]))
    assert {"trainer.use_gpu", "sampler.gpus_per_replica"} <= set(keys)


def test_tokens_of_a_pass_decide_its_memory_and_how_often_weights_are_gathered() -> None:
    """Rows of 5,000 tokens: one a pass, and four."""

    def planned_with(tokens: str, *options: str) -> dict[str, Any]:
        given = ("--set", f"imitate.micro_batch_tokens={tokens}", "--mean-tokens", "5000", *options)
        values: dict[str, Any] = json.loads(planned("qwen2.5-32b", *given, "--json").stdout)
        return values

    single, several = planned_with("null"), planned_with("20000")
    assert [plan["traffic"]["imitate"]["num_passes"] for plan in (single, several)] == [6, 2]
    received = [plan["traffic"]["imitate"]["received_bytes"] for plan in (single, several)]
    assert received[0] == pytest.approx(3 * received[1]), "in every pass all weights twice, and all gradients"
    peaks = [plan["trainer"]["imitate"]["peak_bytes"] for plan in (single, several)]
    assert peaks[0] < peaks[1] < 1.05 * peaks[0], "two padded rows of 10,000 tokens have a mask"
    assert several["fits"] and planned_with("20000")["trainer"]["rounds.0.sft"] == single["trainer"]["rounds.0.sft"]
    options = ["--set", "imitate.micro_batch_tokens=40000"]
    assert refused_keys(planned("qwen2.5-32b", *options)) == ["imitate.micro_batch_tokens"]
    found = suggested("qwen2.5-32b", *options, "--set", "trainer.sequence_parallel_size=1")["suggestions"]
    assert any("imitate.micro_batch_tokens=20000" in split["set"] for split in found)


def test_the_refusal_goes_away_with_the_key_that_it_names() -> None:
    assert refused_keys(planned("qwen2.5-32b", "--set", "dpo.max_length=20000")) == ["rounds.2.dpo.max_length"]
    shorter = ("--set", "dpo.max_length=20000", "--set", "rounds.2.dpo={max_length: 14000}")
    assert planned("qwen2.5-32b", *shorter).exit_code == 0


# -- cost, and a better split of the machines --------------------------------------------------------------------------


_HUNDREDS = ["--set", "sft.global_batch_size=100", "--set", "dpo.global_batch_size=100"]
LONG_ROWS = [
    *("--set", "model.max_length=32768", "--set", "trainer.num_workers=8", "--set", "trainer.offload=cpu"),
    *("--set", "sampler.num_replicas=2", "--set", "imitate.max_length=32768"),
    *("--set", "sft.max_length=32768", "--set", "dpo.max_length=32768"),
]
"""The 32B recipe with rows as long as the model takes, on one machine."""


def test_ranks_that_share_rows_hold_longer_ones() -> None:
    machines = ["--devices-per-node", "8", "--host-memory-gib", "1024"]
    alone = planned("qwen2.5-32b", *LONG_ROWS, machines=machines)
    assert refused_keys(alone) == ["rounds.2.dpo.max_length"]
    assert "trainer.sequence_parallel_size" in alone.stderr
    peaks = []
    for size in (2, 4, 8):
        together = ["--set", f"trainer.sequence_parallel_size={size}", "--json"]
        result = planned("qwen2.5-32b", *LONG_ROWS, *together, machines=machines)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)["trainer"]["rounds.2.dpo"]
        peaks.append({part["name"]: part["num_bytes"] for part in found["passing"]}["activations"])
    assert peaks[0] == pytest.approx(2 * peaks[1], rel=0.01) and peaks[1] == pytest.approx(2 * peaks[2], rel=0.01)
    result = planned("qwen2.5-32b", *LONG_ROWS, "--suggest", machines=machines)
    assert result.exit_code == 0, result.output
    assert result.stdout.split("the fastest:\n")[1].splitlines() == [
        *("--set placement=elastic", "--set trainer.sequence_parallel_size=2")
    ]


def test_a_row_that_ranks_of_several_machines_share_is_warned_of() -> None:
    apart = ["--set", "trainer.num_workers=20", "--set", "trainer.sequence_parallel_size=20"]
    for options, warned in ((apart, True), ([*apart[:3], "trainer.sequence_parallel_size=4"], False)):
        result = planned("qwen2.5-32b", *options, "--set", "imitate.global_batch_size=100", *_HUNDREDS)
        assert ("warning: trainer.sequence_parallel_size: " in result.stdout) == warned, result.stdout


def test_what_is_held_follows_from_placement_and_price() -> None:
    """Two replicas beside sixteen ranks, on three machines of eight GPUs."""
    budget = json.loads(planned("qwen2.5-32b", *APART, "--price-per-gpu-hour", "2", "--json").stdout)["cost"]
    together = json.loads(planned("qwen2.5-32b", "--price-per-gpu-hour", "2", "--json").stdout)["cost"]
    assert budget["held_devices"] == together["held_devices"] == 24
    assert budget["sampling_hours"] == pytest.approx(3 * together["sampling_hours"]), "eight devices, or twenty-four"
    assert budget["training_hours"] == together["training_hours"], "sixteen ranks either way"
    for one in (budget, together):
        hours = one["sampling_hours"] + one["training_hours"] + one["waiting_hours"]
        assert one["held_device_hours"] == pytest.approx(24 * hours)
        assert one["money"] == pytest.approx(2 * 24 * hours)
    assert together["idle_share"] < 0.15 < budget["idle_share"], "the recipe keeps its devices busy"


def test_fewer_problems_that_are_solved_cost_more_rollouts() -> None:
    def rollouts(rate: str) -> int:
        stages = json.loads(planned("qwen2.5-32b", "--solve-rate", rate, "--json").stdout)["stages"]
        return int(next(stage["expected_rollouts"] for stage in stages if stage["name"] == "rounds.0.explore"))

    assert (rollouts("0"), rollouts("1")) == (2_000 * 20, 2_000 * 4)
    assert rollouts("1") < rollouts("0.5") < rollouts("0.2") < rollouts("0")


def test_a_budget_of_tokens_bounds_what_is_sampled_but_for_the_first_wave() -> None:
    def work(budget: int) -> dict[str, Any]:
        options = ("--solve-rate", "0", "--mean-tokens", "1000", "--set", f"explore.max_sampled_tokens={budget}")
        stages = json.loads(planned("qwen2.5-32b", *options, "--json").stdout)["stages"]
        found: dict[str, Any] = next(stage for stage in stages if stage["name"] == "rounds.0.explore")
        return found

    assert work(10**12)["expected_rollouts"] == 2_000 * 20
    assert work(20_000_000)["expected_rollouts"] == 20_000 and work(20_000_000)["sampled_tokens"] == 20_000_000
    assert work(1)["expected_rollouts"] == 2_000 * 4


def test_an_exploration_that_overlaps_takes_no_time_of_its_own_beside_a_longer_training() -> None:
    def cost(overlap: int) -> dict[str, Any]:
        options = ("--set", f"explore.overlap={overlap}", "--set", "placement=dedicated", "--json")
        found: dict[str, Any] = json.loads(planned("qwen2.5-32b", *APART, *options).stdout)
        return found

    apart, beside = cost(0), cost(1)
    hours = {stage["name"]: stage["hours"] for stage in beside["stages"]}
    shorter = sum(min(hours[stage["name"]], hours[stage["beside"]]) for stage in beside["stages"] if stage["beside"])
    assert [stage["beside"] for stage in beside["stages"] if stage["beside"]], "the recipe has a second round"
    assert beside["cost"]["overlapped_hours"] == pytest.approx(shorter)
    assert beside["cost"]["hours"] == pytest.approx(apart["cost"]["hours"] - shorter) and shorter > 0
    assert apart["cost"]["overlapped_hours"] == 0


def suggested(name: str, *options: str) -> dict[str, Any]:
    result = planned(name, *options, "--suggest", "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def set_options(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_what_is_suggested_costs_what_is_said_and_nothing_is_faster() -> None:
    ours = ["--set", "sampler.num_replicas=4", "--set", "trainer.num_workers=4", "--set", "placement=dedicated"]
    found = suggested("qwen2.5-7b", *ours)
    best = found["suggestions"][0]
    pasted = planned("qwen2.5-7b", *ours, *set_options(best["set"]), "--json")
    assert json.loads(pasted.stdout)["cost"] == best["cost"]
    for placement, replicas, ranks in itertools.product(PLACEMENTS, (4, 7, 8), (4, 8)):
        split = [f"placement={placement}", f"sampler.num_replicas={replicas}", f"trainer.num_workers={ranks}"]
        other = json.loads(planned("qwen2.5-7b", *set_options(split), "--json").stdout)
        assert not other["fits"] or other["cost"]["hours"] >= best["cost"]["hours"], split


@pytest.mark.parametrize("name", MACHINES)
def test_a_committed_recipe_is_the_fastest_on_its_machines(name: str) -> None:
    """Elastic apart: engines that sleep were never tried on a GPU, and gain a fiftieth at most."""
    found = suggested(name)
    fastest, *_ = [one for one in found["suggestions"] if "placement=elastic" not in one["set"]]
    assert fastest["set"] == []
    assert found["suggestions"][0]["cost"]["hours"] > 0.98 * fastest["cost"]["hours"]


def test_memory_is_made_room_for_where_only_that_fits() -> None:
    """On one machine 32 billion parameters and their states do not fit eight ranks of 80 GiB."""
    one_machine = ["--devices-per-node", "8", "--host-memory-gib", "1024", "--suggest"]
    result = planned("qwen2.5-32b", *APART, machines=one_machine)
    assert result.exit_code == 0, result.output
    _, lines = result.stdout.split("the fastest:\n")
    assert {"--set placement=elastic", "--set trainer.num_workers=8", "--set trainer.offload=cpu"} <= set(
        lines.splitlines()
    )


def test_where_nothing_fits_one_line_says_why() -> None:
    result = planned("qwen2.5-32b", "--suggest", machines=["--devices-per-node", "1", "--host-memory-gib", "128"])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "no split of these machines fits" in result.stderr and "a replica must lie on one machine" in result.stderr


@pytest.mark.parametrize("options", [["--suggest"], ["--price-per-gpu-hour", "2"]])
def test_without_gpus_there_is_nothing_to_split_or_to_pay(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", str(JOBS / "demo.yaml"), *options])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(f"still-ray: {options[0]}: no machine has a GPU")


# -- cluster files ----------------------------------------------------------------------------------------------------

LAUNCHER = {
    "cluster_name": "still-ray",
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 16, "memory": 64 * 2**30}, "node_config": {}},
        "gpu": {
            "min_workers": 0,
            "max_workers": 3,
            "resources": {"CPU": 96, "GPU": 8, "memory": 1024 * 2**30},
            "node_config": {},
        },
    },
}


def pod(cpu: str, memory: str, gpus: int = 0) -> dict[str, Any]:
    limits: dict[str, Any] = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": gpus} if gpus else {})
    return {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}


CLUSTER_SPEC = {
    "enableInTreeAutoscaling": True,
    "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod("8", "64Gi")},
    "workerGroupSpecs": [
        {
            "groupName": "gpu",
            "replicas": 1,
            "minReplicas": 0,
            "maxReplicas": 3,
            "rayStartParams": {},
            "template": pod("96", "1Ti", 8),
        }
    ],
}
KUBERAY = [
    {"apiVersion": "v1", "kind": "Namespace"},
    {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": CLUSTER_SPEC},
]
JOB = [{"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"rayClusterSpec": CLUSTER_SPEC}}]


def test_node_types_of_a_cluster_launcher_file() -> None:
    fleet = fleet_of([LAUNCHER], where="cluster.yaml")
    assert fleet.max_nodes == 4
    assert fleet.nodes == (
        NodeType(name="head", count=1, cpus=16, gpus=0, memory_bytes=64 * 2**30, least=1),
        NodeType(name="gpu", count=3, cpus=96, gpus=8, memory_bytes=1024 * 2**30, least=0),
    )


@pytest.mark.parametrize("documents", [KUBERAY, JOB])
def test_node_types_of_a_kuberay_manifest(documents: list[Any]) -> None:
    assert fleet_of(documents, where="cluster.yaml").nodes == (
        NodeType(name="head", count=1, cpus=0, gpus=0, memory_bytes=64 * 2**30, least=1),
        NodeType(name="gpu", count=3, cpus=96, gpus=8, memory_bytes=1024 * 2**30, least=0),
    )


def test_without_an_autoscaler_there_are_the_replicas_and_no_more() -> None:
    spec = {**CLUSTER_SPEC, "enableInTreeAutoscaling": False}
    _, gpu = fleet_of([{"kind": "RayCluster", "spec": spec}], where="cluster.yaml").nodes
    assert (gpu.count, gpu.num_first) == (1, 1)


@pytest.mark.parametrize("documents", [[LAUNCHER], KUBERAY, JOB])
def test_a_recipe_fits_a_cluster_file_and_not_a_smaller_one(documents: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    assert planned("qwen2.5-32b", machines=["--cluster", str(path)]).exit_code == 0
    path.write_text(yaml.safe_dump_all(documents).replace("maxReplicas: 3", "maxReplicas: 2").replace(": 3", ": 2"))
    assert refused_keys(planned("qwen2.5-32b", machines=["--cluster", str(path)]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Deployment\n", "neither a cluster-launcher file"),
        ("a: [", "is not YAML"),
        ("available_node_types: {gpu: {resources: {CPU: 8, GPU: many}}}\n", "'many' is not a quantity"),
        ("available_node_types: {gpu: {resources: {}}}\n", "available_node_types.gpu.resources: say CPU and GPU"),
        ("kind: RayCluster\n", "spec must be a mapping"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    result = planned("qwen2.5-32b", machines=["--cluster", str(path)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert str(path) in result.stderr
    assert said in result.stderr


def test_quantities_are_read_as_kubernetes_writes_them() -> None:
    spec = {"headGroupSpec": {"template": pod("500m", "1500M")}}
    (head,) = fleet_of([{"kind": "RayCluster", "spec": spec}], where="cluster.yaml").nodes
    assert (head.cpus, head.memory_bytes) == (0.5, 1_500_000_000)
    with pytest.raises(InputError, match=r"cluster\.yaml: head: cpu: '8 cores' is not a quantity"):
        fleet_of(
            [{"kind": "RayCluster", "spec": {"headGroupSpec": {"template": pod("8 cores", "1Gi")}}}],
            where="cluster.yaml",
        )


def test_auto_is_refused_where_the_gpus_come_later(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(LAUNCHER))
    options = ["--set", "sampler.gpus_per_replica=auto", "--set", "trainer.use_gpu=auto"]
    keys = refused_keys(planned("qwen2.5-32b", *options, machines=["--cluster", str(path)]))
    assert keys == ["sampler.gpus_per_replica", "trainer.use_gpu"]
    path.write_text(yaml.safe_dump(LAUNCHER).replace("min_workers: 0", "min_workers: 1"))
    assert planned("qwen2.5-32b", *options, machines=["--cluster", str(path)]).exit_code == 0


def test_the_limit_of_all_machines_together_counts(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**LAUNCHER, "max_workers": 2}))
    result = planned("qwen2.5-32b", machines=["--cluster", str(path)])
    assert refused_keys(result) == ["sampler.num_replicas"]
    assert "max_workers" not in result.stderr  # three machines of the type cannot be: two are all there are
    gpu = LAUNCHER["available_node_types"]["gpu"]  # type: ignore[index]
    types = {"head": LAUNCHER["available_node_types"]["head"], "a": gpu, "b": gpu}  # type: ignore[index]
    path.write_text(yaml.safe_dump({**LAUNCHER, "max_workers": 2, "available_node_types": types}))
    result = planned("qwen2.5-32b", machines=["--cluster", str(path)])
    assert refused_keys(result) == ["sampler.num_replicas"]
    assert "its max_workers lets no more machines start" in result.stderr
