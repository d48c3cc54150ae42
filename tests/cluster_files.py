"""The committed cluster files, what their comments say of them, and what Ray's own autoscaler makes of them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from still_ray.algo.planning.bundles import Bundle

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
LAUNCHER_FILES = sorted(CLUSTER.glob("*.yaml"))
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
CLUSTER_FILES = [*LAUNCHER_FILES, *(path for path in MANIFESTS if path.name != "shared.yaml")]


def documents_of(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """The `still-ray plan` command in a file's first comment.

    Attributes:
        recipe: Path from the root of the checkout.
        cluster: The same, of the cluster file.
        overrides: What follows each --set.
    """

    recipe: str
    cluster: str
    overrides: tuple[str, ...]

    def arguments(self, cluster: Path | None = None) -> list[str]:
        """For the command line, with another cluster file if given."""
        sets = [part for override in self.overrides for part in ("--set", override)]
        return ["plan", str(ROOT / self.recipe), "--cluster", str(cluster or ROOT / self.cluster), *sets]


def documented_plan(path: Path) -> PlanCommand:
    """The plan command that a file's comment prints, read as a shell would."""
    lines = [
        line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    first = next(index for index, line in enumerate(lines) if line.startswith("still-ray plan"))
    text = ""
    for line in lines[first:]:
        text += line.removesuffix("\\")
        if not line.endswith("\\"):
            break
    return _plan_command(shlex.split(text)[2:])


def _plan_command(words: list[str]) -> PlanCommand:
    options = list(zip(words[1::2], words[2::2], strict=True))
    assert {name for name, _ in options} <= {"--cluster", "--set"}
    return PlanCommand(
        recipe=words[0],
        cluster=dict(options)["--cluster"],
        overrides=tuple(value for name, value in options if name == "--set"),
    )


def autoscaling_config(document: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler reads on the head, with defaults: of a cluster-launcher file, a RayCluster or a RayJob."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import prepare_config, validate_config

    if "kind" in document:
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        cluster = {"metadata": {"name": "cluster", "namespace": "default"}, "spec": spec}
        derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
        return derived
    prepared: dict[str, Any] = prepare_config(document)
    validate_config(prepared)
    return prepared


def machines_launched(config: dict[str, Any], bundles: Sequence[Bundle]) -> tuple[Counter[str], int]:
    """What Ray's autoscaler (v2) would start for pending actors when the head alone is there.

    Args:
        config: Of `autoscaling_config`.
        bundles: The actors; trainer ranks ask together, as a placement group does.

    Returns:
        How many machines of each type beside the head, and for how many requests it finds none.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import BundleSelector, GangResourceRequest

    read = AutoscalingConfig(config, skip_content_hash=True)
    ranks = [_request(bundle) for bundle in bundles if bundle.role == "trainer"]
    others = [_request(bundle) for bundle in bundles if bundle.role != "trainer"]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=read.get_node_type_configs(),
        max_num_nodes=read.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(others),
        gang_resource_requests=[
            GangResourceRequest(requests=ranks, bundle_selectors=[BundleSelector(resource_requests=ranks)])
        ],
    )
    reply = ResourceDemandScheduler().schedule(request)
    started = Counter({launch.instance_type: launch.count for launch in reply.to_launch})
    return started, len(reply.infeasible_resource_requests) + len(reply.infeasible_gang_resource_requests)


def _request(bundle: Bundle) -> Any:
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    resources = {"CPU": bundle.cpus, "GPU": bundle.gpus}
    selector = [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in bundle.selector.items()]
    return ResourceRequestUtil.make(
        {name: number for name, number in resources.items() if number}, label_selectors=[selector] if selector else None
    )
