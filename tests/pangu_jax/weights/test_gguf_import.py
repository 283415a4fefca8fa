"""GGUF files written with the gguf package: values, layouts, quantisations, errors, memory."""

import dataclasses
import tracemalloc

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import weight_files as files
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from pangu_jax.models import RopeScaling
from pangu_jax.models.rope import rope_frequencies
from pangu_jax.parallel.mesh import MeshConfig, make_mesh
from pangu_jax.weights import WeightsError, import_gguf, open_gguf, tokenizer_from_gguf
from pangu_jax.weights.gguf_config import TENSOR_NAMES
from pangu_jax.weights.mapping import map_tensors

SMALL = files.SMALL


def write(path, config=SMALL, architecture="llama", **options):
    params = files.random_params(config)
    tensors = files.gguf_tensors(config, params, architecture)
    return files.write_gguf(path, config, tensors, architecture=architecture, **options), params


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    "architecture, changes",
    [
        ("llama", {}),
        ("llama", {"tie_embeddings": True}),
        ("llama", {"qkv_bias": True}),
        ("qwen2", {"qkv_bias": True, "norm_eps": 1e-6}),
        ("qwen3", {"qk_norm": True, "head_dim": 32}),
        ("pangu-embedded", {"qkv_bias": True, "out_bias": True}),
    ],
)
def test_float32_file_gives_the_very_parameters(tmp_path, architecture, changes):
    config = dataclasses.replace(SMALL, **changes)
    path, params = write(tmp_path / "m.gguf", config, architecture)
    got_config, got = import_gguf(path)
    assert got_config == config
    assert_equal(got, params)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1, Kind.F16, Kind.BF16])
def test_quantised_values(tmp_path, kind):
    """Expanded values are the reader's; the error is bounded by the type's step."""
    chosen = ("blk.1.attn_q.weight", "blk.0.ffn_down.weight", "token_embd.weight")
    path, params = write(tmp_path / "m.gguf", types=dict.fromkeys(chosen, kind))
    _, got = import_gguf(path)
    embedding = params["embed"]["embedding"]
    np.testing.assert_array_equal(
        got["embed"]["embedding"], dequantize(quantize(embedding, kind), kind)
    )
    bits = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q5_1": 5, "F16": 10, "BF16": 7}[kind.name]
    for leaf, want in (
        (got["layers"]["attn"]["q"]["kernel"], params["layers"]["attn"]["q"]["kernel"]),
        (got["layers"]["mlp"]["down"]["kernel"], params["layers"]["mlp"]["down"]["kernel"]),
    ):
        worst = np.abs(leaf - want).max()
        assert 0 < worst <= 1.2 / 2**bits
        # A permutation that is wrong would be off by the size of the values themselves.
        assert np.abs(np.roll(leaf, 1, axis=-1) - want).max() > 0.3


def test_file_without_undoing_the_permutation_is_another_model(tmp_path):
    """The same file read as an architecture that stores pairs apart gives other q and k."""
    path, params = write(tmp_path / "m.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pangu_jax.weights.gguf_import.is_interleaved", lambda _: False)
        _, wrong = import_gguf(path)
    for name in "qk":
        assert not np.allclose(
            wrong["layers"]["attn"][name]["kernel"], params["layers"]["attn"][name]["kernel"]
        )
    np.testing.assert_array_equal(
        wrong["layers"]["attn"]["v"]["kernel"], params["layers"]["attn"]["v"]["kernel"]
    )


def test_rope_factors_become_llama3_stretching(tmp_path):
    scaling = RopeScaling(factor=32.0)
    config = dataclasses.replace(SMALL, rope_base=500_000.0, head_dim=64, rope_scaling=scaling)
    factors = rope_frequencies(64, 500_000.0) / rope_frequencies(64, 500_000.0, scaling)
    tensors = files.gguf_tensors(config, files.random_params(config))
    tensors["rope_freqs.weight"] = factors.astype(np.float32)
    path = files.write_gguf(tmp_path / "m.gguf", config, tensors)
    assert import_gguf(path)[0] == config
    tensors["rope_freqs.weight"][20] *= 1.1
    path = files.write_gguf(tmp_path / "other.gguf", config, tensors)
    with pytest.raises(WeightsError, match="rope_freqs.weight is not Llama 3's stretching"):
        import_gguf(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_of_parameters_and_config(tmp_path, dtype):
    path, params = write(tmp_path / "m.gguf")
    config, got = import_gguf(path, dtype=dtype)
    assert config.dtype == dtype
    jax.tree.map(lambda g, w: np.testing.assert_array_equal(g, w.astype(g.dtype)), got, params)
    assert {str(x.dtype) for x in jax.tree.leaves(got)} == {dtype}


def test_on_a_mesh_the_shards_are_the_parameters(tmp_path):
    path, params = write(tmp_path / "m.gguf")
    mesh = make_mesh(MeshConfig(data=4, model=2))
    _, got = import_gguf(path, mesh=mesh)
    q = got["layers"]["attn"]["q"]["kernel"]
    assert q.sharding.shard_shape(q.shape) == (2, 64, 2, 16)  # heads over 'model'
    assert_equal(jax.tree.map(np.asarray, got), params)


def drop(name):
    def change(tensors):
        del tensors[name]

    return change


def put(name, array):
    def change(tensors):
        tensors[name] = array

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (drop("blk.1.attn_k.weight"), "lacks tensor blk.1.attn_k.weight"),
        (drop("token_embd.weight"), "lacks the tensor token_embd.weight"),
        (
            put("blk.0.attn_v.weight", np.zeros((30, 64), np.float32)),
            r"blk.0.attn_v.weight has shape \[30, 64\]; \[32, 64\] is needed",
        ),
        (put("blk.0.attn_qkv.weight", np.zeros((2, 2), np.float32)), "holds tensor blk.0.attn_qkv"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    tensors = files.gguf_tensors(SMALL, files.random_params(SMALL))
    change(tensors)
    path = files.write_gguf(tmp_path / "m.gguf", SMALL, tensors)
    with pytest.raises(WeightsError, match=message):
        import_gguf(path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w.add_expert_count(8), "expert_count=8"),
        (lambda w: w.add_sliding_window(32), "sliding_window=32"),
        (lambda w: w.add_rope_dimension_count(8), "only 8 of 16"),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
            ),
            "rope.scaling.type='yarn'",
        ),
        (lambda w: w.add_uint16("split.count", 3), "split.count=3, so it is one part"),
    ],
)
def test_unsupported_features_are_refused(tmp_path, edit, message):
    path, _ = write(tmp_path / "m.gguf", edit=edit)
    with pytest.raises(WeightsError, match=message):
        import_gguf(path)


def test_unknown_architecture_and_quantisation(tmp_path):
    tensors = files.gguf_tensors(SMALL, files.random_params(SMALL))
    path = files.write_gguf(tmp_path / "a.gguf", SMALL, tensors, architecture="gemma3")
    with pytest.raises(
        WeightsError, match="'gemma3' is unknown; read are llama, qwen2, qwen3, pangu"
    ):
        import_gguf(path)
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].astype(np.int8)
    path = files.write_gguf(tmp_path / "b.gguf", SMALL, tensors)
    with pytest.raises(WeightsError, match="blk.0.ffn_up.weight is stored as I8"):
        import_gguf(path)
    with pytest.raises(WeightsError, match="dtype='int4' is unknown"):
        import_gguf(path, dtype="int4")


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.5, 0.999])
def test_truncated_file(tmp_path, share):
    path, _ = write(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match="truncated or no GGUF file"):
        import_gguf(path)


@pytest.mark.timeout(120)
def test_a_damaged_header_is_an_error_or_harmless(tmp_path):
    """Any one byte of the header: a clear error, never another exception or an endless loop."""
    config = dataclasses.replace(SMALL, vocab_size=8)
    path, _ = write(tmp_path / "m.gguf", config, edit=small_tokenizer)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, good.index(b"output.weight"), 150):
        data = bytearray(good)
        data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            file = open_gguf(path)
            import_gguf(file)
            tokenizer_from_gguf(file.metadata)
        except WeightsError:
            refused += 1
    assert refused > 50


def small_tokenizer(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 3])
    writer.add_token_merges(["a b"])


@pytest.mark.parametrize(
    "field, found, message",
    [
        # Right behind the key's name: type array, element type, then the number of elements.
        (b"tokenizer.ggml.token_type", b"\x09\0\0\0\x05\0\0\0", "bytes are announced"),
        (b"llama.block_count", b"\x04\0\0\0", "block_count="),
    ],
)
def test_huge_numbers(tmp_path, field, found, message):
    path, _ = write(tmp_path / "m.gguf", edit=small_tokenizer)
    data = bytearray(path.read_bytes())
    at = data.index(field) + len(field)
    assert data[at : at + len(found)] == found
    data[at + len(found) + 3] = 0x7F  # number + 127 * 2^24
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        import_gguf(path)


def write_parts(folder, cuts, change=None):
    """A file cut as llama.cpp's gguf-split does: metadata in the first part, tensors in all."""
    config = SMALL
    params = files.random_params(config)
    names = list(files.gguf_tensors(config, params).items())
    bounds = [0, *cuts, len(names)]
    count = len(bounds) - 1
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        keys = {"split.no": number, "split.count": count} | ((change or {}).get(number) or {})

        def edit(writer, keys=keys):
            for key, value in keys.items():
                writer.add_uint16(key, value)
            writer.add_int32("split.tensors.count", len(names))

        path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
        part = dict(names[bounds[number] : bounds[number + 1]])
        paths.append(files.write_gguf(path, config, part, edit=edit))
    return paths, params


def test_parts_of_a_split_file(tmp_path):
    """Whichever part is named, and with a first part that holds metadata alone."""
    for cuts in ([3, 11], [0, 11]):
        paths, params = write_parts(tmp_path / str(cuts[0]), cuts)
        for path in paths:
            config, got = import_gguf(path)
            assert config == SMALL
            assert_equal(got, params)


def test_parts_that_do_not_fit_together(tmp_path):
    paths, _ = write_parts(tmp_path / "a", [3, 11])
    paths[1].unlink()
    with pytest.raises(WeightsError, match="one of 3 parts; .*m-00002-of-00003.gguf is missing"):
        open_gguf(paths[0])
    paths, _ = write_parts(tmp_path / "b", [3, 11], {2: {"split.no": 1}})
    with pytest.raises(WeightsError, match="split.no=1; its name says 3 and 2"):
        open_gguf(paths[0])
    paths, _ = write_parts(tmp_path / "c", [3, 11])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(WeightsError, match="split.no=1; its name says"):
        open_gguf(paths[0])


def test_empty_arrays_and_unknown_types(tmp_path):
    path, _ = write(
        tmp_path / "m.gguf", edit=lambda w: (w.add_array("x", [7]), w.add_array("y", ["a"]))
    )
    assert [open_gguf(path).metadata.get(key) for key in "xyz"] == [[7], ["a"], None]
    data = path.read_bytes()
    # Key, type array, element type, number of elements, elements: shortened to none at all, by
    # keys of eight and nine more letters that take the elements' place.
    for before, after in (
        (b"\x01\0\0\0\0\0\0\0x\x09\0\0\0\x05\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0",
         b"\x05\0\0\0\0\0\0\0xxxxx\x09\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0"),
        (b"\x01\0\0\0\0\0\0\0y\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a",
         b"\x0a\0\0\0\0\0\0\0yyyyyyyyyy\x09\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0"),
    ):  # fmt: skip
        assert len(before) == len(after) and data.count(before) == 1
        data = data.replace(before, after)
    path.write_bytes(data)
    assert [open_gguf(path).metadata.get(key) for key in ("xxxxx", "y" * 10)] == [[], []]
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # number of axes, two axes
    path.write_bytes(data[:at] + b"\xc8" + data[at + 1 :])
    with pytest.raises(WeightsError, match="blk.0.ffn_up.weight has the type number 200"):
        open_gguf(path)


def test_texts_that_are_none_matter_where_they_are_asked_for(tmp_path):
    path, _ = write(tmp_path / "m.gguf", edit=lambda w: w.add_string("general.name", "name"))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"general.name\x08\0\0\0\x04\0\0\0\0\0\0\0name",
                                  b"general.name\x08\0\0\0\x04\0\0\0\0\0\0\0\xffame"))  # fmt: skip
    import_gguf(path)
    with pytest.raises(WeightsError, match="the value of general.name is no text"):
        open_gguf(path).metadata.get("general.name")


@pytest.mark.parametrize("interleaved", [False, True])
def test_transposing_in_squares_is_the_plain_map(interleaved):
    config = dataclasses.replace(
        SMALL, hidden_dim=200, head_dim=34, num_heads=9, num_kv_heads=3, mlp_dim=300,
        qkv_bias=True, qk_norm=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for tensor in map_tensors(config, TENSOR_NAMES, interleaved=interleaved):
        for dtype in (np.float32, ml_dtypes.bfloat16):
            array = rng.normal(size=tensor.shape).astype(dtype)
            out = np.empty(tensor.ours, dtype)
            tensor.fill(out, array)
            np.testing.assert_array_equal(out, tensor.to_ours(array))


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="There is no file"):
        import_gguf(tmp_path / "no.gguf")


def test_peak_of_memory_is_one_copy_and_one_tensor(tmp_path):
    config = dataclasses.replace(
        SMALL, num_layers=12, hidden_dim=256, mlp_dim=768, num_heads=8, head_dim=32,
        vocab_size=2048, tie_embeddings=True,
    )  # fmt: skip
    tensors = files.gguf_tensors(config, files.random_params(config))
    types = {n: Kind.Q8_0 for n, a in tensors.items() if a.ndim == 2}
    path = files.write_gguf(tmp_path / "m.gguf", config, tensors, types=types)
    size = 4 * config.num_parameters()
    import_gguf(path)  # imports and caches of the libraries are not what is measured
    tracemalloc.start()
    try:
        _, params = import_gguf(path)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now > 0.95 * size  # the arrays are seen by the tracer, else this could not fail
    assert peak < 1.35 * size
