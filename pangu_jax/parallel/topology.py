"""What a cluster is: devices, memories and links, as data.

A node is a group of devices joined by the fast links: a server of GPUs or NPUs, a whole slice of
TPUs. Figures are those of data sheets and of the papers named; whatever is not published for a
system stands in its `assumptions`. Latencies are never published and always assumed.

Units: FLOP/s, bytes, bytes/s, s. GB are 1e9 bytes. Bandwidths count one direction.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from pangu_jax.parallel.mesh import MeshError


class TopologyError(MeshError):
    """An unknown topology, or figures of one that make no sense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A cluster of equal devices in equal nodes.

    peak_flops: dtype name -> dense FLOP/s of one device.
    memory_bytes, memory_bandwidth: of one device.
    intra_bandwidth, inter_bandwidth: what one device can send in one direction inside a node (all
      its links together) and to other nodes.
    intra_latency, inter_latency: of one message.
    torus: sizes of the torus that the fast links form; () where every pair of a node is linked or
      goes through a switch. A collective along one torus axis has 1 / len(torus) of
      intra_bandwidth.
    device_kind: as JAX names the device, where JAX knows it.
    assumptions: every figure that is not published for this system.
    """

    name: str
    nodes: int
    devices_per_node: int
    peak_flops: Mapping[str, float] = dataclasses.field(hash=False)
    memory_bytes: float
    memory_bandwidth: float
    intra_bandwidth: float
    intra_latency: float
    inter_bandwidth: float
    inter_latency: float
    device_kind: str
    intra_links: str
    inter_links: str
    torus: tuple[int, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self):
        for field in (
            "nodes", "devices_per_node", "memory_bytes", "memory_bandwidth", "intra_bandwidth",
            "inter_bandwidth",
        ):  # fmt: skip
            if not getattr(self, field) > 0:
                raise TopologyError(
                    f"topology {self.name!r}: {field}={getattr(self, field)!r} must be above 0."
                )
        for field in ("intra_latency", "inter_latency"):
            if getattr(self, field) < 0:
                raise TopologyError(
                    f"topology {self.name!r}: {field}={getattr(self, field)!r} must not be "
                    "negative."
                )
        if not self.peak_flops or min(self.peak_flops.values()) <= 0:
            raise TopologyError(
                f"topology {self.name!r}: peak_flops={dict(self.peak_flops)!r} must name at least "
                "one dtype, each with FLOP/s above 0."
            )

    @property
    def devices(self) -> int:
        return self.nodes * self.devices_per_node

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of one device for products of that dtype.

        Raises:
          TopologyError: the topology has no figure for it.
        """
        if dtype not in self.peak_flops:
            raise TopologyError(
                f"topology {self.name!r} has no peak for dtype {dtype!r}; it has "
                f"{', '.join(self.peak_flops)}. Change the model's dtype or add the figure."
            )
        return self.peak_flops[dtype]


_LATENCY = "latencies: 2 us inside a node, 10 us between nodes (order of magnitude)"


def _ascend(devices: int) -> Topology:
    # Pangu Ultra, arXiv 2504.07866, section 4.1: 8 NPUs of 64 GB a node, HCCS full mesh, 200 Gb/s
    # RoCE per NPU between nodes. The paper names neither the chip's version nor its peak.
    return Topology(
        name=f"ascend_{devices}",
        nodes=devices // 8,
        devices_per_node=8,
        peak_flops={"bfloat16": 313e12, "float16": 313e12, "float32": 75e12},
        memory_bytes=64e9,
        memory_bandwidth=1.6e12,
        intra_bandwidth=196e9,
        intra_latency=5e-6,
        inter_bandwidth=25e9,
        inter_latency=15e-6,
        device_kind="Ascend NPU",
        intra_links="full mesh (HCCS)",
        inter_links="200 Gb/s RoCE per device",
        assumptions=(
            "peak: 313 TFLOP/s dense bfloat16 (the paper gives none and no chip version)",
            "float32 peak: 75 TFLOP/s",
            "memory bandwidth: 1.6 TB/s",
            "HCCS: 7 links of 28 GB/s per direction and device",
            "latencies: 5 us inside a node, 15 us between nodes (order of magnitude)",
        ),
    )


def _gpu(name, devices, *, kind, memory, bandwidth, inter=50e9, links="400 Gb/s InfiniBand NDR",
         assumptions=()) -> Topology:  # fmt: skip
    # Hopper SXM data sheets: 989 TFLOP/s dense bfloat16, 495 TF32, NVLink 4 with 900 GB/s both ways.
    return Topology(
        name=name,
        nodes=max(devices // 8, 1),
        devices_per_node=min(devices, 8),
        peak_flops={"bfloat16": 989e12, "float16": 989e12, "float32": 495e12},
        memory_bytes=memory,
        memory_bandwidth=bandwidth,
        intra_bandwidth=450e9,
        intra_latency=2e-6,
        inter_bandwidth=inter,
        inter_latency=10e-6,
        device_kind=kind,
        intra_links="NVLink 4 through NVSwitch, 450 GB/s per device and direction",
        inter_links=f"{links} per device",
        assumptions=("float32 peak is that of TF32 products", _LATENCY, *assumptions),
    )


def _h100(devices: int) -> Topology:
    return _gpu(
        f"h100_{devices}", devices, kind="NVIDIA H100 80GB HBM3", memory=80e9, bandwidth=3.35e12
    )


def _tpu(name, slice_shape, *, kind, peak, memory, bandwidth, link, assumptions=()) -> Topology:
    devices = 1
    for size in slice_shape:
        devices *= size
    return Topology(
        name=name,
        nodes=1,
        devices_per_node=devices,
        peak_flops={"bfloat16": peak},
        memory_bytes=memory,
        memory_bandwidth=bandwidth,
        intra_bandwidth=2 * len(slice_shape) * link,
        intra_latency=1e-6,
        inter_bandwidth=6.25e9,
        inter_latency=50e-6,
        device_kind=kind,
        intra_links=f"torus {'x'.join(map(str, slice_shape))} (ICI), {link / 1e9:g} GB/s per link "
        "and direction",
        inter_links="data-centre network, 200 Gb/s per host of 4",
        torus=tuple(slice_shape),
        assumptions=(
            "one slice: nothing crosses the data-centre network",
            "latencies: 1 us per ICI hop, 50 us between slices (order of magnitude)",
            *assumptions,
        ),
    )


def _v5p(slice_shape, assumptions=()) -> Topology:
    devices = slice_shape[0] * slice_shape[1] * slice_shape[2]
    return _tpu(
        f"tpu_v5p_{devices}", slice_shape, kind="TPU v5p", peak=459e12, memory=95e9,
        bandwidth=2.765e12, link=100e9, assumptions=assumptions,
    )  # fmt: skip


_ALL = (
    _ascend(8192),
    _v5p(
        (16, 16, 32),
        ("one slice of 8,192 chips: XLA compiles for it; the largest that is rented out is smaller",),
    ),
    _v5p((4, 4, 8)),
    _v5p((8, 8, 8)),
    _tpu(
        "tpu_v6e_256", (16, 16), kind="TPU v6 lite", peak=918e12, memory=32e9, bandwidth=1.64e12,
        link=112e9,
    ),
    *(_h100(devices) for devices in (8, 64, 96, 128, 256, 512, 1024, 2048, 4608, 6144, 8192)),
    _gpu("h200_1", 1, kind="NVIDIA H200", memory=141e9, bandwidth=4.8e12),
    _gpu("h200_8", 8, kind="NVIDIA H200", memory=141e9, bandwidth=4.8e12),
    Topology(
        name="cpu_8",
        nodes=1,
        devices_per_node=8,
        peak_flops={"float32": 40e9, "bfloat16": 40e9, "float64": 20e9},
        memory_bytes=2e9,
        memory_bandwidth=5e9,
        intra_bandwidth=2e9,
        intra_latency=50e-6,
        inter_bandwidth=2e9,
        inter_latency=50e-6,
        device_kind="cpu",
        intra_links="shared memory of one process",
        inter_links="none",
        assumptions=("every figure: an ordinary processor core, for tests and examples only",),
    ),
)  # fmt: skip

TOPOLOGIES: dict[str, Topology] = {entry.name: entry for entry in _ALL}


def topology(name: str) -> Topology:
    """The topology of that name.

    Raises:
      TopologyError: unknown name (with the nearest one).
    """
    if name not in TOPOLOGIES:
        near = difflib.get_close_matches(name, TOPOLOGIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TopologyError(
            f"topology={name!r} is unknown; allowed: {', '.join(TOPOLOGIES)}.{hint}"
        )
    return TOPOLOGIES[name]
