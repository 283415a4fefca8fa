"""Hugging Face directories: logits of transformers, bit-exact round trips, shards, errors."""

import dataclasses
import json
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import weight_files as files
from safetensors.numpy import load_file, save_file

from pangu_jax.models import Decoder, RopeScaling
from pangu_jax.parallel.mesh import MeshConfig, make_mesh
from pangu_jax.weights import WeightsError, export_safetensors, import_safetensors

PEER = json.loads((files.FIXTURES / "transformers.json").read_text())
BASE = dataclasses.replace(files.SMALL, qkv_bias=False)
FAMILIES = {
    "LlamaForCausalLM": BASE,
    "LlamaForCausalLM_bias": dataclasses.replace(BASE, qkv_bias=True, out_bias=True),
    "LlamaForCausalLM_stretched": dataclasses.replace(BASE, rope_scaling=RopeScaling(factor=32.0)),
    "Qwen2ForCausalLM": dataclasses.replace(BASE, qkv_bias=True, tie_embeddings=True),
    "Qwen3ForCausalLM": dataclasses.replace(BASE, qk_norm=True, head_dim=24),
    "PanguEmbeddedForCausalLM": dataclasses.replace(
        BASE, norm_scheme="dssn", qkv_bias=True, out_bias=True, c_mlp=0.3, init="tiny"
    ),
    "PanguEmbeddedForCausalLM_sandwich": dataclasses.replace(
        BASE, norm_scheme="sandwich", sandwich_gamma="c"
    ),
}


def peer_folder(path, name, change=None):
    model = PEER["models"][name]
    tensors = {key: files.values(key, shape) for key, shape in model["shapes"].items()}
    if change:
        change(tensors)
    return files.write_hf(path, model["config"], tensors)


def apply(config, params, tokens):
    return np.asarray(jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray(tokens)))


@pytest.mark.parametrize("name", sorted(PEER["models"]))
def test_logits_are_those_of_transformers(tmp_path, name):
    config, params = import_safetensors(peer_folder(tmp_path / "m", name))
    model = PEER["models"][name]
    want = np.array(model["logits"], np.float32)
    got = apply(config, params, model["tokens"])
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    assert want.std() > 0.3  # logits that differ enough for the comparison to mean something


def test_comparison_sees_the_stretched_frequencies(tmp_path):
    """Without rope_scaling the third model's logits are others: the fixture exercises it."""
    config, params = import_safetensors(peer_folder(tmp_path / "m", "llama3_stretched"))
    model = PEER["models"]["llama3_stretched"]
    plain = apply(dataclasses.replace(config, rope_scaling=None), params, model["tokens"])
    assert np.abs(plain - np.array(model["logits"])).max() > 1e-2


@pytest.mark.parametrize("name", sorted(PEER["models"]))
def test_export_of_an_import_has_the_same_bytes(tmp_path, name):
    folder = peer_folder(tmp_path / "m", name)
    config, params = import_safetensors(folder)
    again = export_safetensors(config, params, tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (folder, again))
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.tobytes() == after[key].tobytes() and array.dtype == after[key].dtype
    assert import_safetensors(again)[0] == config


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_import_of_an_export_is_the_model(tmp_path, name, dtype):
    config = dataclasses.replace(FAMILIES[name], dtype=np.dtype(dtype).name)
    params = jax.tree.map(lambda x: x.astype(dtype), files.random_params(config))
    folder = export_safetensors(config, params, tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    assert values["architectures"] == [name.split("_")[0]]
    got_config, got = import_safetensors(folder)
    assert got_config == config
    assert jax.tree.structure(got) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(dtype)}


def test_four_norms_are_written_under_their_own_names(tmp_path):
    """By value, independent of the map: each of the four norms of layer 1."""
    config = FAMILIES["PanguEmbeddedForCausalLM"]
    params = files.random_params(config)
    written = load_file(export_safetensors(config, params, tmp_path / "m") / "model.safetensors")
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("post_attn_norm", "post_attention_layernorm"),
        ("mlp_norm", "pre_mlp_layernorm"),
        ("post_mlp_norm", "post_mlp_layernorm"),
    ):
        np.testing.assert_array_equal(
            written[f"model.layers.1.{theirs}.weight"], params["layers"][ours]["scale"][1]
        )


def test_shards_and_index(tmp_path):
    params = files.random_params(BASE)
    limit = 40_000
    whole = export_safetensors(BASE, params, tmp_path / "whole")
    folder = export_safetensors(BASE, params, tmp_path / "cut", max_shard_bytes=limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        arrays = load_file(shard)
        assert sum(a.nbytes for a in arrays.values()) <= limit or len(arrays) == 1
        assert all(index["weight_map"][name] == shard.name for name in arrays)
    together = {name: a for shard in shards for name, a in load_file(shard).items()}
    alone = load_file(whole / "model.safetensors")
    assert together.keys() == alone.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in alone.values())
    for read in (whole, folder):
        jax.tree.map(np.testing.assert_array_equal, import_safetensors(read)[1], params)


def test_files_are_as_open_as_the_umask_lets_them(tmp_path):
    folder = export_safetensors(BASE, files.random_params(BASE), tmp_path / "out")
    modes = {path.stat().st_mode for path in folder.iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_dtype_on_the_way_in_and_out(tmp_path):
    params = files.random_params(BASE)
    folder = export_safetensors(BASE, params, tmp_path / "m", dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    config, got = import_safetensors(folder, dtype="float32")
    assert config.dtype == "float32"
    jax.tree.map(
        lambda g, w: np.testing.assert_array_equal(g, w.astype(ml_dtypes.bfloat16).astype("f4")),
        got, params,
    )  # fmt: skip


def test_boxed_sharded_jax_parameters_go_out_and_come_back(tmp_path):
    tokens = jnp.zeros((1, 2), jnp.int32)
    boxes = jax.eval_shape(Decoder(BASE).init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(
        lambda value, box: box.replace_boxed(value), files.random_params(BASE), boxes
    )
    folder = export_safetensors(BASE, params, tmp_path / "m")
    config, plain = import_safetensors(folder)
    mesh = make_mesh(MeshConfig(data=4, model=2))
    _, placed = import_safetensors(folder, mesh=mesh)
    gate = placed["layers"]["mlp"]["gate"]["kernel"]
    assert gate.sharding.shard_shape(gate.shape) == (2, 64, 48)
    again = export_safetensors(config, placed, tmp_path / "again")
    name = "model.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, plain, files.random_params(BASE))


def test_tied_head_may_be_stored_but_must_be_the_embedding(tmp_path):
    name = "qwen3"

    def same(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def other(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    config, params = import_safetensors(peer_folder(tmp_path / "same", name, same))
    assert config.tie_embeddings and "head" not in params
    with pytest.raises(WeightsError, match="ties lm_head.weight"):
        import_safetensors(peer_folder(tmp_path / "other", name, other))


def test_of_a_tied_pair_either_name_will_do(tmp_path):
    def renamed(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    want = import_safetensors(peer_folder(tmp_path / "a", "qwen3"))
    got = import_safetensors(peer_folder(tmp_path / "b", "qwen3", renamed))
    assert got[0] == want[0]
    jax.tree.map(np.testing.assert_array_equal, got[1], want[1])


def test_what_lies_beside_the_weights_is_left_alone(tmp_path):
    """One file in Hugging Face's layout goes before an index, as in transformers; the rest of a
    published folder (authors' layout, pickles, adapters) is not touched."""
    folder = peer_folder(tmp_path / "m", "llama")
    want = import_safetensors(folder)[1]
    (folder / "original").mkdir()
    for name in ("pytorch_model.bin", "original/consolidated.00.pth", "consolidated.safetensors",
                 "adapter_model.safetensors", "generation_config.json"):  # fmt: skip
        (folder / name).write_bytes(b"not ours")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    jax.tree.map(np.testing.assert_array_equal, import_safetensors(folder)[1], want)
    index.unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    jax.tree.map(np.testing.assert_array_equal, import_safetensors(folder)[1], want)


def test_old_rotary_buffers_are_ignored_and_nothing_else(tmp_path):
    def buffer(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    def strange(tensors):
        tensors["model.layers.0.mlp.router.weight"] = np.ones(2, np.float32)

    import_safetensors(peer_folder(tmp_path / "a", "llama", buffer))
    with pytest.raises(WeightsError, match="holds tensor model.layers.0.mlp.router.weight"):
        import_safetensors(peer_folder(tmp_path / "b", "llama", strange))


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    key = "model.layers.1.self_attn.k_proj.weight"

    def cut(tensors):
        tensors[key] = tensors[key][:-1]

    with pytest.raises(WeightsError, match=rf"lacks tensor {key}"):
        import_safetensors(peer_folder(tmp_path / "a", "llama", lambda t: t.pop(key)))
    with pytest.raises(WeightsError, match=rf"{key} has shape \[7, 16\]; \[8, 16\] is needed"):
        import_safetensors(peer_folder(tmp_path / "b", "llama", cut))


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.float8_e4m3fn])
def test_types_that_are_not_read(tmp_path, dtype):
    key = "model.layers.1.mlp.up_proj.weight"

    def store(tensors):
        tensors[key] = tensors[key].astype(dtype)

    with pytest.raises(WeightsError, match=f"Tensor {key} is stored as F.*; read are F32, BF16"):
        import_safetensors(peer_folder(tmp_path / "m", "llama", store))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(tmp_path, share):
    folder = peer_folder(tmp_path / "m", "llama")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match="model.safetensors is missing, truncated"):
        import_safetensors(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b", "..\\x", "C:x"])
def test_index_must_not_lead_outside(tmp_path, name):
    folder = peer_folder(tmp_path / "m", "llama")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    save_file({"a": np.ones(1)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="leads out of the folder"):
        import_safetensors(folder)


@pytest.mark.parametrize("name, message", [("gone.safetensors", "is missing, truncated")])
def test_index_with_a_file_that_is_not_there(tmp_path, name, message):
    folder = peer_folder(tmp_path / "m", "llama")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(WeightsError, match=message):
        import_safetensors(folder)
    index.write_text(json.dumps({"weight_map": {"nothing": "part.safetensors"}}))
    with pytest.raises(WeightsError, match="which does not hold it"):
        import_safetensors(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM' is unknown; read are Llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"rope_parameters": {"full_attention": {}}}, "one group of settings for all layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25 is not supported"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True is not"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types=\['sliding_att"),
        ({"architectures": None, "model_type": "gemma"}, r"architecture '\(none\)' is unknown"),
        ({"initializer_range": "wide"}, "a value has the wrong type"),
        ({"num_hidden_layers": None}, "lacks the key 'num_hidden_layers'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, but"),
        ({"num_attention_heads": 3}, "num_heads=3 must be a multiple of num_kv_heads=2"),
        ({"vocab_size": "many"}, "a value has the wrong type"),
        ({"pangu_jax": {"init": "zeros"}}, "init='zeros' is not one of"),
    ],
)
def test_configurations_that_are_not_read(tmp_path, change, message):
    folder = peer_folder(tmp_path / "m", "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        import_safetensors(folder)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match="There is no .*config.json"):
        import_safetensors(tmp_path)
    folder = peer_folder(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no \*.safetensors"):
        import_safetensors(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same weights under other names")
    with pytest.raises(WeightsError, match=r"holds no \*.safetensors file in Hugging Face's"):
        import_safetensors(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(
        WeightsError, match="holds pytorch_model.bin .*convert it with transformers"
    ):
        import_safetensors(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not readable JSON"):
        import_safetensors(folder)


def test_export_refuses(tmp_path):
    params = files.random_params(BASE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(WeightsError, match="is not an empty folder"):
        export_safetensors(BASE, params, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    lacking = {k: v for k, v in params.items() if k != "head"}
    with pytest.raises(WeightsError, match="lack head/kernel"):
        export_safetensors(BASE, lacking, tmp_path / "m")
    tied = dataclasses.replace(BASE, tie_embeddings=True)
    with pytest.raises(WeightsError, match="hold head/kernel"):
        export_safetensors(tied, params, tmp_path / "m")
    with pytest.raises(WeightsError, match="needed by the config"):
        export_safetensors(dataclasses.replace(BASE, mlp_dim=97), params, tmp_path / "m")
    strange = dataclasses.replace(BASE, out_bias=True)
    with pytest.raises(WeightsError, match="No Hugging Face family has"):
        export_safetensors(strange, files.random_params(strange), tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]  # no half-written folder


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_safetensors(BASE, files.random_params(BASE), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_openpangu_7b_has_two_norms_and_four_biases(tmp_path):
    """Its published configuration: bias for q, k, v and o, no sandwich_norm."""
    shapes = PEER["models"]["llama_tied_bias"]["shapes"]
    values = PEER["models"]["llama_tied_bias"]["config"] | {
        "architectures": ["PanguEmbeddedForCausalLM"], "attention_bias": None, "bias": True,
    }  # fmt: skip
    tensors = {key: files.values(key, shape) for key, shape in shapes.items()}
    config, params = import_safetensors(files.write_hf(tmp_path / "m", values, tensors))
    assert (config.norm_scheme, config.qkv_bias, config.out_bias) == ("pre_ln", True, True)
    want = np.array(PEER["models"]["llama_tied_bias"]["logits"], np.float32)
    got = apply(config, params, PEER["models"]["llama_tied_bias"]["tokens"])
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


def test_layers_of_different_types_become_the_wider_one(tmp_path):
    key = "model.layers.{}.input_layernorm.weight"

    def narrow(tensors):
        tensors[key.format(0)] = tensors[key.format(0)].astype(ml_dtypes.bfloat16)

    folder = peer_folder(tmp_path / "m", "llama", narrow)
    scale = import_safetensors(folder)[1]["layers"]["attn_norm"]["scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale[1], files.values(key.format(1), (16,)))
    np.testing.assert_array_equal(
        scale[0], files.values(key.format(0), (16,)).astype(ml_dtypes.bfloat16).astype("f4")
    )


def test_peak_of_memory(tmp_path):
    """Import: the parameters and one tensor. Export: two copies of a shard (its arrays and the
    library's buffer), never of the model."""
    config = dataclasses.replace(
        BASE, num_layers=16, hidden_dim=256, mlp_dim=512, num_heads=8, head_dim=32, vocab_size=512
    )
    params = files.random_params(config)
    size, shard = 4 * config.num_parameters(), 3 << 20
    assert size > 8 * shard
    export_safetensors(config, params, tmp_path / "warm")
    tracemalloc.start()
    try:
        folder = export_safetensors(config, params, tmp_path / "m", max_shard_bytes=shard)
        exported = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        back = import_safetensors(folder)[1]
        now, imported = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shard < exported < 2.5 * shard
    assert now > 0.95 * size and len(back) == 4
    assert imported < 1.3 * size


def test_core_import_needs_no_optional_package():
    code = (
        "import sys, pangu_jax.weights as w\n"
        "bad = {'gguf', 'safetensors', 'tokenizers', 'jinja2', 'torch'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "sys.modules['gguf'] = None\n"
        "try: w.open_gguf('x')\n"
        "except w.WeightsError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "run `pip install gguf`" in run.stdout
