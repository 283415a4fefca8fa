"""The axis arithmetic of the map: exact inverses, against rows moved one by one."""

import dataclasses

import numpy as np
import pytest
import weight_files as files
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.models import PRESETS, preset
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.gguf_config import TENSOR_NAMES
from pangu_jax.weights.hf_config import tensor_names
from pangu_jax.weights.mapping import map_tensors


@given(
    heads=st.integers(1, 3), share=st.integers(1, 3), pairs=st.integers(1, 4),
    hidden=st.integers(1, 5), interleaved=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_to_theirs_undoes_to_ours(heads, share, pairs, hidden, interleaved, bias):
    config = dataclasses.replace(
        files.SMALL, num_kv_heads=heads, num_heads=heads * share, head_dim=2 * pairs,
        hidden_dim=hidden, qkv_bias=bias, out_bias=bias, qk_norm=True, norm_scheme="dssn",
    )  # fmt: skip
    tensors = map_tensors(config, tensor_names(config), interleaved=interleaved)
    for tensor in tensors:
        theirs = np.arange(np.prod(tensor.shape)).reshape(tensor.shape)
        ours = tensor.to_ours(theirs)
        assert ours.shape == tensor.ours
        back = tensor.to_theirs(ours)
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, theirs)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_map_covers_every_parameter_of_every_preset(name):
    config = preset(name)
    tensors = map_tensors(config, tensor_names(config))
    assert sum(int(np.prod(t.shape)) for t in tensors) == config.num_parameters()
    assert len({t.name for t in tensors}) == len(tensors)


def test_interleaved_rows_are_those_of_llama_cpp():
    config = files.SMALL
    rng = np.random.default_rng(0)
    for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
        plain = rng.normal(size=(heads * config.head_dim, config.hidden_dim))
        tensor = next(
            t
            for t in map_tensors(config, TENSOR_NAMES, interleaved=True)
            if t.path == ("layers", "attn", name, "kernel")
        )
        ours = tensor.to_ours(files.llama_cpp_rows(plain, heads))
        want = plain.T.reshape(config.hidden_dim, heads, config.head_dim)
        np.testing.assert_array_equal(ours, want)


def test_same_file_name_means_two_norms():
    """post_attention_layernorm: before the MLP in Llama, on attention's output in openPangu."""
    assert "post_attention" in tensor_names(files.SMALL)["layers/mlp_norm/scale"]
    four = tensor_names(dataclasses.replace(files.SMALL, norm_scheme="dssn"))
    assert "post_attention" in four["layers/post_attn_norm/scale"]
    assert "pre_mlp" in four["layers/mlp_norm/scale"]


def test_errors():
    with pytest.raises(WeightsError, match="rope_layout='interleaved'"):
        map_tensors(dataclasses.replace(files.SMALL, rope_layout="interleaved"), TENSOR_NAMES)
    with pytest.raises(WeightsError, match="no name for the parameter layers/post_attn_norm"):
        map_tensors(dataclasses.replace(files.SMALL, norm_scheme="dssn"), TENSOR_NAMES)
