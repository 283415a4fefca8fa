"""How long a collective takes, from the links that its group lies on.

Devices are numbered in mesh order (data, pipe, context, tensor; tensor fastest), node by node. A
group along an axis has a stride, the product of the faster axes; its members inside one node talk
over the fast links, the rest over each device's own link between nodes. Both parts run at the same
time, so the slower one counts:

    all-gather, reduce-scatter   bytes * (m-1)/m / intra   and   bytes/m * (q-1)/q / inter
    all-reduce                   twice that
    permute                      bytes / link

of `bytes` in the gathered array, m members a node, q nodes. A torus gives a group the share of its
links that the axes it needs have. Latency: a message per step of a ring, or one where every pair
of a node has a link of its own.
"""

from __future__ import annotations

import dataclasses
import math

from pangu_jax.parallel.layout import AXES, Layout
from pangu_jax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Group:
    """Where the devices of a group lie: `inside` members in a node, `nodes` nodes."""

    size: int
    stride: int
    inside: int
    nodes: int

    @property
    def links(self) -> str:
        if self.size == 1:
            return "none"
        if self.nodes == 1:
            return "inside a node"
        return "between nodes" if self.inside == 1 else "inside and between nodes"


def group_of(layout: Layout, axis: str, topology: Topology) -> Group:
    """The group of a device along one mesh axis."""
    sizes = dict(zip(AXES, layout.mesh_shape, strict=True))
    stride = math.prod(sizes[name] for name in AXES[AXES.index(axis) + 1 :])
    size = sizes[axis]
    inside = min(size, max(1, topology.devices_per_node // stride))
    return Group(size, stride, inside, -(-size // inside))


def collective_seconds(
    kind: str, size: float, group: Group, topology: Topology, efficiency: float
) -> float:
    """Seconds of one collective.

    Args:
      kind: 'all-gather', 'reduce-scatter', 'all-reduce' or 'collective-permute'.
      size: bytes of the gathered (or reduced, or sent) array on one device.
      efficiency: share of the link bandwidth that is reached.
    """
    if group.size == 1:
        return 0.0
    intra = topology.intra_bandwidth * _torus_share(group, topology) * efficiency
    inter = topology.inter_bandwidth * efficiency
    mesh = "full mesh" in topology.intra_links
    if kind == "collective-permute":
        if group.nodes > 1:
            return size / inter + topology.inter_latency
        # Between two neighbours there is one link of a full mesh or torus, not all of them.
        links = max(topology.devices_per_node - 1, 1) if mesh else 2 * max(len(topology.torus), 1)
        whole = topology.intra_bandwidth * efficiency
        single = whole / links if mesh or topology.torus else whole
        return size / single + topology.intra_latency
    rounds = 2.0 if kind == "all-reduce" else 1.0
    m, q = group.inside, group.nodes
    inner = size * (m - 1) / m / intra + _steps(m, topology, mesh) * topology.intra_latency
    outer = size / m * (q - 1) / q / inter + (q - 1) * topology.inter_latency
    return rounds * max(inner if m > 1 else 0.0, outer if q > 1 else 0.0)


def _steps(members: int, topology: Topology, mesh: bool) -> int:
    if mesh:
        return 1
    if topology.torus:
        # A ring along each torus axis in turn.
        return sum(max(side - 1, 0) for side in _axes_used(members, topology))
    return members - 1


def _axes_used(members: int, topology: Topology) -> list[int]:
    used, reached = [], 1
    for side in sorted(topology.torus, reverse=True):
        if reached >= members:
            break
        used.append(min(side, -(-members // reached)))
        reached *= side
    return used


def _torus_share(group: Group, topology: Topology) -> float:
    if not topology.torus:
        return 1.0
    return len(_axes_used(group.inside, topology)) / len(topology.torus)
