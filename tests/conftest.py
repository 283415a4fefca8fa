"""Test session set-up: 8 fake CPU devices, a persistent compilation cache, parsed absl flags.

The device count must be set before JAX starts its backend, hence the environment variables at
import time. Sub-process tests set their own.
"""

import gc
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
# A larger thread pool for XLA: its CPU collectives block threads and can starve one another.
os.environ.setdefault("NPROC", "64")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "pangu_jax_test_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# grain reads absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()

settings.register_profile(
    "default", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


# A compiled program holds some ten memory mappings, and Linux ends a process that asks for more
# than 65,530 (vm.max_map_count), as a worker does after half of this suite.
_MOST_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Drops JAX's compiled programs after a module, once the process holds many."""
    yield
    if _mappings() > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def _mappings() -> int:
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real data sets beside the checkout; skips where it is absent."""
    folder = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development data folder ../shared/data is absent")
    return folder
