"""The machines of a cluster: as options describe them, as a cluster-launcher file, or as a KubeRay manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from still_ray.types import InputError

_UNITS: Final[Mapping[str, float]] = {
    "": 1,
    "m": 1e-3,
    **{unit: 1000**i for i, unit in enumerate(("k", "M", "G", "T"), start=1)},
    **{unit: 1024**i for i, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)},
}
_QUANTITY: Final = re.compile(r"([\d.]+)\s*(m|k|M|G|T|Ki|Mi|Gi|Ti|)")
_GPU_KEYS: Final = ("nvidia.com/gpu", "amd.com/gpu")
_KUBERAY: Final = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
DEFAULT_OBJECT_STORE_SHARE: Final = 0.3
"""Share of a node's memory that Ray takes for its object store. Source: Ray's default."""

MOST_OBJECT_STORE_BYTES: Final = 200 * 10**9
"""What it takes at most, unless told otherwise. Source: Ray's default."""

_SELECTOR: Final = re.compile(r"(!?)(?:in\((.*)\)|(.*))")
DEFAULT_MAX_WORKERS: Final = 2
"""Machines beside the head where a cluster-launcher file says nothing. Source: Ray's default."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Machines of one kind.

    Attributes:
        name: As the cluster file calls it.
        count: How many there can be, at most.
        cpus: Ray CPUs of each.
        gpus: Ray GPUs of each.
        memory_bytes: Host memory of each; None: not said.
        object_store_bytes: Of that, Ray's object store; None: Ray's default share of it.
        least: How many there are from the start; an autoscaler adds the others on demand. None: all.
        labels: Their Ray node labels.
    """

    name: str
    count: int
    cpus: float
    gpus: float
    memory_bytes: int | None = None
    object_store_bytes: int | None = None
    least: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def num_first(self) -> int:
        """How many there are from the start."""
        return self.count if self.least is None else self.least

    @property
    def store_bytes(self) -> int | None:
        """Size of the object store; None if the memory is not known."""
        if self.object_store_bytes is not None or self.memory_bytes is None:
            return self.object_store_bytes
        return min(int(DEFAULT_OBJECT_STORE_SHARE * self.memory_bytes), MOST_OBJECT_STORE_BYTES)

    def satisfies(self, selector: Mapping[str, str]) -> bool:
        """Whether its labels are those that a label selector of Ray's asks for: v, !v, in(v, w) or !in(v, w)."""
        return labels_satisfy(self.labels, selector)


def labels_satisfy(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels are those that a label selector of Ray's asks for: v, !v, in(v, w) or !in(v, w)."""
    return all(_allows(wanted, labels.get(key)) for key, wanted in selector.items())


def _allows(wanted: str, value: str | None) -> bool:
    found = _SELECTOR.fullmatch(wanted.strip())
    assert found is not None  # it matches every text
    negated, several, one = found.groups()
    values = [one] if several is None else [part.strip() for part in several.split(",")]
    return (value in values) != bool(negated)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The machines that a cluster may have.

    Attributes:
        nodes: Of each type, the head's first or among them.
        max_nodes: How many machines there can be at once, the head included; None: no limit but that of each type.
    """

    nodes: tuple[NodeType, ...]
    max_nodes: int | None = None


def fleet_of(documents: Sequence[Any], *, where: str) -> Fleet:
    """The machines of a parsed cluster file.

    Args:
        documents: Its YAML documents: one of the Ray cluster launcher, or manifests one of which is KubeRay's.
        where: The file, in errors.

    Raises:
        InputError: It is neither, or a number cannot be read.
    """
    for document in documents:
        if isinstance(document, Mapping) and "available_node_types" in document:
            most = _quantity(document.get("max_workers", DEFAULT_MAX_WORKERS), f"{where}: max_workers")
            return Fleet(nodes=tuple(_launcher_types(document, int(most), where)), max_nodes=int(most) + 1)
        if isinstance(document, Mapping) and document.get("kind") in _KUBERAY:
            return Fleet(nodes=tuple(_kuberay_types(document, where)))
    raise InputError(
        f"{where}: neither a cluster-launcher file (available_node_types) nor a KubeRay manifest "
        f"({', '.join(_KUBERAY)})"
    )


def _launcher_types(document: Mapping[str, Any], most: int, where: str) -> Iterator[NodeType]:
    head = document.get("head_node_type")
    for name, entry in _mapping(document["available_node_types"], f"{where}: available_node_types").items():
        place = f"{where}: available_node_types.{name}"
        resources = _mapping(_mapping(entry, place).get("resources") or {}, f"{place}.resources")
        if "CPU" not in resources:
            raise InputError(f"{place}.resources: say CPU and GPU; what a provider would detect is not known here")
        limit = _quantity(entry.get("max_workers", 0 if name == head else most), f"{place}.max_workers")
        yield NodeType(
            name=str(name),
            count=min(int(limit), most) + (name == head),
            cpus=_quantity(resources["CPU"], f"{place}.resources.CPU"),
            gpus=_quantity(resources.get("GPU", 0), f"{place}.resources.GPU"),
            memory_bytes=_size(resources.get("memory"), f"{place}.resources.memory"),
            object_store_bytes=_size(resources.get("object_store_memory"), f"{place}.resources.object_store_memory"),
            least=int(_quantity(entry.get("min_workers", 0), f"{place}.min_workers")) + (name == head),
            labels=_labels(entry, place),
        )


def _kuberay_types(document: Mapping[str, Any], where: str) -> Iterator[NodeType]:
    spec = _mapping(document.get("spec"), f"{where}: spec")
    for key in _KUBERAY[document["kind"]]:
        spec = _mapping(spec.get(key), f"{where}: spec.{key}")
    yield _pod_type("head", (1, 1), _mapping(spec.get("headGroupSpec"), f"{where}: headGroupSpec"), where)
    first, most = ("minReplicas", "maxReplicas") if spec.get("enableInTreeAutoscaling") else ("replicas", "replicas")
    for group in spec.get("workerGroupSpecs") or ():
        name = str(_mapping(group, f"{where}: workerGroupSpecs").get("groupName", "workers"))
        hosts = int(_quantity(group.get("numOfHosts", 1), f"{where}: {name}.numOfHosts"))
        least, count = (int(_quantity(group.get(key, 0), f"{where}: {name}.{key}")) * hosts for key in (first, most))
        yield _pod_type(name, (least, count), group, where)


def _pod_type(name: str, numbers: tuple[int, int], group: Mapping[str, Any], where: str) -> NodeType:
    """What a pod offers: the group's resources, else rayStartParams, else the limits of its first container."""
    place = f"{where}: {name}"
    asked, start = group.get("resources") or {}, group.get("rayStartParams") or {}
    pod = _mapping((group.get("template") or {}).get("spec"), f"{place}.template.spec")
    containers = pod.get("containers") or [{}]
    resources = containers[0].get("resources") or {}
    limits = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    gpus = next((limits[key] for key in _GPU_KEYS if key in limits), 0)
    least, count = numbers
    return NodeType(
        name=name,
        count=count,
        cpus=_quantity(asked.get("CPU", start.get("num-cpus", limits.get("cpu", 0))), f"{place}: cpu"),
        gpus=_quantity(asked.get("GPU", start.get("num-gpus", gpus)), f"{place}: gpu"),
        memory_bytes=_size(asked.get("memory", start.get("memory", limits.get("memory"))), f"{place}: memory"),
        object_store_bytes=_size(start.get("object-store-memory"), f"{place}: object-store-memory"),
        least=least,
        labels=_labels(group, place),
    )


def _labels(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    labels = _mapping(entry.get("labels") or {}, f"{where}.labels")
    return {str(key): str(value) for key, value in labels.items()}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping, not {type(value).__name__}")
    return value


def _size(value: Any, where: str) -> int | None:
    return None if value is None else int(_quantity(value, where))


def _quantity(value: Any, where: str) -> float:
    """A number, or Kubernetes' way to write one, e.g. "500m" or "64Gi"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None:
        raise InputError(f"{where}: {value!r} is not a quantity, e.g. 8 or 64Gi")
    return float(found.group(1)) * _UNITS[found.group(2)]


def total_gpus(nodes: Iterable[NodeType]) -> float:
    """GPUs of all machines together."""
    return sum(node.count * node.gpus for node in nodes)
