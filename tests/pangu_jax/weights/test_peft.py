"""Adapters in peft's layout: logits of peft, files that peft made, round trips, errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import weight_files as files
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pangu_jax.models import Decoder
from pangu_jax.models.lora import Adapter, LoraConfig, bind, fingerprint, init_lora, merge
from pangu_jax.weights import WeightsError, import_safetensors
from pangu_jax.weights.peft import export_peft, import_peft

PEER = json.loads((files.FIXTURES / "peft.json").read_text())
TOKENS = np.array(PEER["tokens"], np.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(config, params) of the model for which peft made its adapters."""
    tensors = {key: files.values(key, shape) for key, shape in PEER["base"]["shapes"].items()}
    values = PEER["base"]["config"] | {"architectures": ["LlamaForCausalLM"]}
    return import_safetensors(files.write_hf(tmp_path_factory.mktemp("base"), values, tensors))


def peer_folder(path, name, change=None, **entries):
    """The directory that peft wrote; `change` edits its tensors, `entries` its configuration."""
    made = PEER["adapters"][name]
    tensors = {key: files.values(name + key, shape) for key, shape in made["tensors"].items()}
    if change:
        change(tensors)
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(made["config"] | entries))
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    return {
        name: import_peft(peer_folder(folder / name, name), base[0]) for name in PEER["adapters"]
    }


def logits(base, variables=None, params=None):
    config, own = base
    collections = {"params": own if params is None else params}
    if variables is not None:
        collections["lora"] = variables
    return np.asarray(jax.jit(Decoder(config).apply)(collections, TOKENS))


def close(got, want):
    np.testing.assert_allclose(got, np.array(want, np.float32), atol=3e-5, rtol=3e-5)


def random_adapter(config, rank=3, **choices):
    lora = LoraConfig(rank=rank, **choices)
    rng = np.random.default_rng(rank)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        init_lora(config, lora, jax.random.key(0)),
    )
    return Adapter("mine", lora, params, "sha256:0123", "org/base")


def test_base_has_the_peers_logits(base):
    close(logits(base), PEER["base_logits"])


@pytest.mark.parametrize("name", sorted(PEER["adapters"]))
def test_logits_are_those_of_peft(base, adapters, name):
    want = PEER["adapters"][name]["logits"]
    close(logits(base, bind([adapters[name]], config=base[0])), want)
    close(logits(base, params=merge(base[1], adapters[name]).params), want)
    assert np.abs(np.array(want) - PEER["base_logits"]).max() > 1


def test_weighted_adapters_are_those_of_peft(base, adapters):
    names = sorted(adapters)
    weights = np.array([[PEER["weights"][name] for name in names]], np.float32)
    close(logits(base, bind([adapters[name] for name in names], weights)), PEER["both_logits"])


@pytest.mark.parametrize("name", sorted(PEER["adapters"]))
def test_an_export_of_pefts_adapter_has_its_tensors_and_settings(base, adapters, name, tmp_path):
    made = PEER["adapters"][name]
    folder = export_peft(adapters[name], base[0], tmp_path / "again")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {key: list(array.shape) for key, array in tensors.items()} == made["tensors"]
    for key, array in tensors.items():
        assert array.dtype == np.float32 and np.array_equal(
            array, files.values(name + key, array.shape)
        )
    values = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(values.pop("target_modules")) == made["config"]["target_modules"]
    for key, value in values.items():
        if key not in ("inference_mode", "base_model_name_or_path"):
            assert made["config"][key] == value, key


@pytest.mark.parametrize(
    "choices",
    [{}, dict(targets=("o", "v"), rslora=True, alpha=0.5, dropout=0.25), dict(rank=1)],
    ids=["all", "some", "rank1"],
)
def test_round_trip_is_exact(base, tmp_path, choices):
    adapter = random_adapter(base[0], **choices)
    folder = export_peft(adapter, base[0], tmp_path / "a")
    back = import_peft(folder, base[0], base_fingerprint="sha256:0123", name="mine")
    assert jax.tree.structure(back) == jax.tree.structure(adapter)  # name, config, base as well
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(adapter), strict=True):
        assert got.dtype == np.float32 and np.array_equal(got, want)
    assert import_peft(folder, base[0]).name == "a"


def test_header_says_torch_and_nothing_is_left_behind(base, tmp_path):
    export_peft(random_adapter(base[0]), base[0], tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"
    with pytest.raises(WeightsError, match="not an empty folder"):
        export_peft(random_adapter(base[0]), base[0], tmp_path / "a")


def test_a_failed_export_leaves_nothing(base, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        export_peft(random_adapter(base[0]), base[0], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_export_checks_the_base(base, tmp_path):
    other = dataclasses.replace(base[0], mlp_dim=40)
    with pytest.raises(WeightsError, match="layers/mlp/gate/b is"):
        export_peft(random_adapter(base[0]), other, tmp_path / "a")
    with pytest.raises(WeightsError, match="rope_layout"):
        turned = dataclasses.replace(base[0], rope_layout="interleaved")
        export_peft(random_adapter(base[0]), turned, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry, value",
    [
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("bias", "lora_only"),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [0]),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("something_of_next_year", {"on": 1}),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(base, tmp_path, entry, value):
    folder = peer_folder(tmp_path / "a", "some", **{entry: value})
    with pytest.raises(WeightsError, match=f"{entry}="):
        import_peft(folder, base[0])


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "names 'lm_head'"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "holds no tensor of it"),
        ({"target_modules": ["q_proj"]}, "has|holds"),
        ({"target_modules": None}, "a list of module names"),
        ({"r": 5}, r"\[5, 16\] is needed"),
        ({"r": "4"}, "r='4'; a number"),
        ({"r": 4.5}, "whole number"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_dropout": 2.0}, "lora.dropout=2.0"),
    ],
)
def test_settings_that_contradict_the_tensors_are_named(base, tmp_path, entries, said):
    with pytest.raises(WeightsError, match=said):
        import_peft(peer_folder(tmp_path / "a", "some", **entries), base[0])


def test_a_pattern_of_modules_is_read_from_the_tensors(base, adapters, tmp_path):
    folder = peer_folder(tmp_path / "a", "some", target_modules=r".*\.(q|v)_proj")
    assert import_peft(folder, base[0]).config == adapters["some"].config


def test_broken_tensors_are_named(base, tmp_path):
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"

    def refused(name, change, said):
        with pytest.raises(WeightsError, match=said):
            import_peft(peer_folder(tmp_path / name, "some", change), base[0])

    refused("missing", lambda t: t.pop(key), f"lacks {key}")
    refused("shape", lambda t: t.update({key: t[key][:, :2]}), "has shape")
    refused("nan", lambda t: t.update({key: t[key] * np.nan}), "not finite")
    refused("type", lambda t: t.update({key: t[key].astype(np.float64)}), "float64")
    refused("extra", lambda t: t.update({key.replace("B", "C"): t[key]}), "no place")
    bias = key.replace("weight", "bias")
    refused("bias", lambda t: t.update({bias: t[key][:, 0].copy()}), "no place")


def test_another_base_is_refused(base, adapters, tmp_path):
    config = base[0]
    folder = peer_folder(tmp_path / "a", "all")
    for change in (dict(num_layers=1), dict(num_layers=3), dict(hidden_dim=20), dict(num_heads=2)):
        with pytest.raises(WeightsError, match="base"):
            import_peft(folder, dataclasses.replace(config, **change))
    mine = dataclasses.replace(adapters["all"], base_fingerprint=fingerprint(*base))
    folder = export_peft(mine, config, tmp_path / "b")
    import_peft(folder, config, base_fingerprint=fingerprint(*base))
    with pytest.raises(WeightsError, match="trained on the base sha256:.*this model is sha256:ff"):
        import_peft(folder, config, base_fingerprint="sha256:ff")


def test_missing_and_truncated_files_are_named(base, tmp_path):
    with pytest.raises(WeightsError, match="There is no"):
        import_peft(tmp_path / "nowhere", base[0])
    folder = peer_folder(tmp_path / "a", "some")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="truncated"):
        import_peft(folder, base[0])
    path.unlink()
    with pytest.raises(WeightsError, match="missing"):
        import_peft(folder, base[0])
