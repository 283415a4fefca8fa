"""Devices that are not here: a sharding to compile for, where the compiler is installed."""

from __future__ import annotations

import importlib.util
import os

import jax
import numpy as np
import pytest

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture(scope="session")
def h100():
    """Sharding on one H100; needs the CUDA plugin of JAX and ptxas."""
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=H100
        )
    except Exception as error:
        pytest.skip(f'no compiler for CUDA here (pip install "jax[cuda12-local]"): {error}')
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@pytest.fixture(scope="session")
def compile_for_v5p():
    """Function (f, *abstract arguments) -> compiled text for a v5p; needs libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('libtpu is not installed; install the extra: pip install ".[aot]"')
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    topology = topologies.get_topology_desc("v5p:2x2x1", platform="tpu")
    mesh = topologies.make_mesh(topology, (4,), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.P())

    def compiled(function, *args):
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
        )
        return jax.jit(mapped, in_shardings=whole).lower(*args).compile().as_text()

    return compiled


@pytest.fixture(scope="session")
def v5p():
    """Abstract mesh of one v5p: lowering for a TPU asks which one it is for."""
    device = jax.sharding.AbstractDevice("TPU v5p", num_cores=1, platform="tpu")
    return jax.sharding.AbstractMesh(
        (1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device
    )


def on_hopper():
    """Whether the tests run on a Hopper GPU."""
    if jax.default_backend() != "gpu":
        return False
    return str(jax.devices()[0].compute_capability).startswith("9.")


@pytest.fixture(scope="session")
def hopper():
    """Skips without a Hopper GPU and JAX_PLATFORMS=cuda."""
    if not on_hopper():
        pytest.skip("needs a Hopper GPU and JAX_PLATFORMS=cuda")
