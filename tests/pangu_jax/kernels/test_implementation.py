"""The rule that picks an implementation."""

from __future__ import annotations

import jax
import pytest

from pangu_jax.kernels import implementation as lib


def refuses(*args):
    raise NotImplementedError("no such shape")


TABLE = {"xla": lambda: lambda x: ("xla", x), "pallas_tpu": lambda: refuses}


def test_auto_falls_through_to_the_next_candidate(monkeypatch):
    assert lib.dispatch("op", TABLE, "auto", 3) == ("xla", 3)
    monkeypatch.setattr(lib, "current_platform", lambda: "tpu")
    assert lib.candidates("auto") == ("pallas_tpu", "xla")
    assert lib.dispatch("op", TABLE, "auto", 3) == ("xla", 3)


def test_a_demand_fails_with_the_reason():
    with pytest.raises(lib.ImplementationUnavailableError, match="pallas_tpu: no such shape"):
        lib.dispatch("op", TABLE, "pallas_tpu", 3)
    with pytest.raises(lib.ImplementationUnavailableError, match="op has no such implementation"):
        lib.dispatch("op", TABLE, "pallas_gpu", 3)


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(lib.UnknownImplementationError, match="Did you mean 'xla'"):
        lib.candidates("xlaa")


def test_other_errors_pass_through():
    def broken():
        raise RuntimeError("a bug, not a refusal")

    with pytest.raises(RuntimeError, match="a bug"):
        lib.dispatch("op", {"xla": lambda: broken}, "auto")


def test_an_abstract_device_decides_the_platform():
    assert lib.current_platform() == jax.default_backend()
    mesh = jax.sharding.AbstractMesh(
        (1,), ('x',), axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice(
            device_kind='TPU v5p', num_cores=1, platform='tpu'),
    )  # fmt: skip
    with jax.sharding.use_abstract_mesh(mesh):
        assert lib.candidates("auto") == ("pallas_tpu", "xla")
