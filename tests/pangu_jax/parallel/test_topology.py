"""Topologies as data: consistent figures, clear errors."""

import dataclasses

import pytest

from pangu_jax.parallel.topology import TOPOLOGIES, TopologyError, topology
from pangu_jax.training.utilisation import peak_flops


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_figures_are_consistent(name):
    entry = topology(name)
    assert entry.name == name
    assert entry.devices == entry.nodes * entry.devices_per_node
    assert name.endswith(f"_{entry.devices}")
    assert entry.peak("bfloat16") >= entry.peak("float32")
    assert entry.inter_bandwidth <= entry.intra_bandwidth < entry.memory_bandwidth
    assert entry.inter_latency >= entry.intra_latency > 0
    assert any("latencies" in text or "every figure" in text for text in entry.assumptions)
    hash(entry)  # usable as a cache key


@pytest.mark.parametrize(
    "name", [name for name in TOPOLOGIES if not name.startswith(("ascend", "cpu"))]
)
def test_peak_is_that_of_the_utilisation_meter(name):
    assert topology(name).peak("bfloat16") == peak_flops(topology(name).device_kind)


def test_cluster_of_the_paper():
    cluster = topology("ascend_8192")
    assert (cluster.nodes, cluster.devices_per_node, cluster.devices) == (1024, 8, 8192)
    assert cluster.memory_bytes == 64e9
    assert cluster.inter_bandwidth == 200e9 / 8
    assert cluster.intra_links == "full mesh (HCCS)"
    assert any("peak" in text for text in cluster.assumptions)


@pytest.mark.parametrize("name, axes", [("tpu_v5p_8192", 3), ("tpu_v6e_256", 2), ("h100_8", 0)])
def test_torus(name, axes):
    cluster = topology(name)
    assert len(cluster.torus) == axes
    if axes:
        assert cluster.intra_bandwidth == 2 * axes * 100e9
        product = 1
        for size in cluster.torus:
            product *= size
        assert product == cluster.devices_per_node


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(TopologyError, match="ascend_8129.*allowed.*Did you mean 'ascend_8192'"):
        topology("ascend_8129")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nodes": 0}, "nodes=0 must be above 0"),
        ({"memory_bandwidth": -1.0}, "memory_bandwidth"),
        ({"intra_latency": -1e-6}, "intra_latency"),
        ({"peak_flops": {}}, "peak_flops"),
    ],
)
def test_senseless_figures(change, message):
    with pytest.raises(TopologyError, match=message):
        dataclasses.replace(topology("h100_8"), **change)


def test_missing_peak():
    with pytest.raises(TopologyError, match="float64.*bfloat16"):
        topology("h100_8").peak("float64")
