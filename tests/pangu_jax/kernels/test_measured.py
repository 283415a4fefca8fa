"""Rules of `auto`: device, size and variant decide, and XLA is always there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pangu_jax.kernels import measured
from pangu_jax.kernels.measured import Rule
from pangu_jax.kernels.rms_norm import api as norm_api

TABLE = {name: lambda: None for name in ("xla", "pallas_tpu", "pallas_gpu")}
RULES = (
    Rule("NVIDIA H100", "pallas_gpu", at_least=1024, variant="separate"),
    Rule("NVIDIA H100", "pallas_gpu", at_least=512, variant="added"),
    Rule("TPU v5p", "pallas_tpu"),
)


@pytest.mark.parametrize(
    "kind, size, variant, want",
    [
        ("NVIDIA H100 80GB HBM3", 1024, "separate", {"xla", "pallas_gpu"}),
        ("NVIDIA H100 80GB HBM3", 1023, "separate", {"xla"}),
        ("NVIDIA H200", 1024, "separate", {"xla", "pallas_gpu"}),
        ("NVIDIA GH200 480GB", 1023, "separate", {"xla"}),
        ("NVIDIA H100 PCIe", 600, "added", {"xla", "pallas_gpu"}),
        ("NVIDIA A100-SXM4-80GB", 4096, "separate", {"xla"}),
        ("TPU v5p", 1, None, {"xla", "pallas_tpu"}),
        ("", 10**6, "separate", {"xla"}),
    ],
)
def test_device_size_and_variant_decide(kind, size, variant, want, monkeypatch):
    monkeypatch.setattr(measured, "current_device_kind", lambda: kind)
    assert set(measured.allowed(TABLE, RULES, size, variant)) == want


def test_device_kind_is_that_of_the_device_traced_for():
    assert measured.current_device_kind() == jax.devices()[0].device_kind
    abstract = jax.sharding.AbstractDevice("TPU v5p", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh(
        (1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=abstract
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert measured.current_device_kind() == "TPU v5p"


def test_rules_name_what_the_operation_has():
    for rule in norm_api.MEASURED:
        assert rule.implementation in norm_api._RMS_NORM and rule.implementation in norm_api._STEP


def test_auto_without_a_rule_for_the_device_is_xla(monkeypatch):
    """A rule for another device changes nothing here."""
    monkeypatch.setattr(norm_api, "MEASURED", (Rule("NVIDIA H100", "pallas_gpu"),))
    x = jnp.ones((2, 128))
    text = jax.jit(lambda x: norm_api.rms_norm(x, jnp.ones(128), eps=1e-6)).lower(x).as_text()
    assert "mosaic_gpu" not in text


def test_a_few_rows_are_left_to_xla(monkeypatch):
    """A step of decoding is bound by launches."""
    taken = []

    def fake(name):
        return lambda: lambda x, scale, **others: taken.append(name) or x

    monkeypatch.setattr(measured, "current_device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(norm_api.implementation_lib, "current_platform", lambda: "gpu")
    for name in ("xla", "pallas_gpu"):
        monkeypatch.setitem(norm_api._RMS_NORM, name, fake(name))
    for shape in ((1024, 2048), (1023, 2048), (4, 256, 4096), (1024, 1024)):
        norm_api.rms_norm(jnp.ones(shape), jnp.ones(shape[-1]), eps=1e-6)
    assert taken == ["pallas_gpu", "xla", "pallas_gpu", "xla"]


def test_nothing_but_xla_where_the_compiler_divides(monkeypatch):
    """It cannot divide a kernel; in a manual `shard_map` it need not."""
    monkeypatch.setattr(measured, "current_device_kind", lambda: "NVIDIA H100 80GB HBM3")
    seen = []

    def look(x):
        seen.append(set(measured.allowed(TABLE, RULES, 1024, "separate")))
        return x

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    alone = jax.make_mesh(
        (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    for one in (alone, mesh):
        with jax.set_mesh(one):
            jax.jit(look).trace(jnp.ones(4))
    by_hand = jax.shard_map(look, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    jax.jit(by_hand).trace(jnp.ones(4))
    assert seen == [{"xla", "pallas_gpu"}, {"xla"}, {"xla", "pallas_gpu"}]


def test_attention_takes_cudnn_for_rows_of_one_document_only(monkeypatch):
    from pangu_jax.kernels.segment_attention import api

    taken = []

    def fake(name):
        def attention(q, k, v, **others):
            taken.append(name)
            if name == "cudnn" and others["window"]:
                raise NotImplementedError("no windows")
            return q

        return lambda: attention

    monkeypatch.setattr(measured, "current_device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(api.implementation_lib, "current_platform", lambda: "gpu")
    for name in ("xla", "pallas_gpu"):
        monkeypatch.setitem(api._TABLE, name, fake(name))
    monkeypatch.setattr(api, "_cudnn", fake("cudnn"))
    monkeypatch.setitem(api._OWN, "cudnn", fake("cudnn"))
    x, ids = jnp.ones((1, 4096, 1, 64), jnp.bfloat16), jnp.ones((1, 4096), jnp.int32)
    api.segment_attention(x, x, x, scale=1.0)
    api.segment_attention(x, x, x, scale=1.0, window=7)
    api.segment_attention(x, x, x, q_segment_ids=ids, kv_segment_ids=ids, scale=1.0)
    short = x[:, :2048]
    api.segment_attention(short, short, short, scale=1.0)
    assert taken == ["cudnn", "cudnn", "xla", "pallas_gpu", "xla"]
