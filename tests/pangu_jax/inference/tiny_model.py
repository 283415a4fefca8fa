"""A decoder small enough to run in milliseconds, a byte-level tokenizer for it, and its reference.

The reference is the NumPy float64 decoder of tests/pangu_jax/models: it shares no code with the
package.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import string
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pangu_jax.models import Decoder
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora import Adapter, LoraConfig, init_lora
from pangu_jax.weights import LoadedModel, LoadedTokenizer, SpecialTokens

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
import numpy_decoder  # noqa: E402

EOS, END_OF_TEXT = 0, 1
VOCAB = 110  # a few rows more than the tokenizer has tokens
TINY = DecoderConfig(
    vocab_size=VOCAB, num_layers=3, hidden_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2,
    head_dim=8, tie_embeddings=True,
)  # fmt: skip
VARIANTS = {
    "pre_ln": {},
    "untied": dict(tie_embeddings=False),
    "sandwich": dict(norm_scheme="sandwich"),
    "dssn_qk_norm": dict(norm_scheme="dssn", qk_norm=True, tie_embeddings=False),
    "biases": dict(qkv_bias=True, out_bias=True, rope_layout="interleaved"),
    "one_head": dict(num_heads=1, num_kv_heads=1, head_dim=32),
}


def make_tokenizer() -> LoadedTokenizer:
    """Printable ASCII, the bytes of 'é' and '€', a few merges, and two end tokens."""
    alphabet = {*string.ascii_letters, *string.digits, *string.punctuation}
    # Space, line end, and the bytes C3 A9 and E2 82 AC, in the byte alphabet of GPT-2.
    tokens = sorted(alphabet) + ["Ġ", "Ċ", "Ã", "©", "â", "Ĥ", "¬"]
    merges = [("t", "h"), ("i", "n")]
    tokens += ["".join(pair) for pair in merges]
    vocab = {"<|im_end|>": EOS, "<|endoftext|>": END_OF_TEXT}
    vocab |= {token: index for index, token in enumerate(tokens, 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|im_end|>", "<|endoftext|>")]
    )
    return LoadedTokenizer(tokenizer, SpecialTokens(eos=EOS))


def config_of(variant: str = "pre_ln", **changes) -> DecoderConfig:
    return dataclasses.replace(TINY, **(VARIANTS[variant] | changes))


def parameters(config: DecoderConfig, seed: int = 0, size: float = 0.3) -> dict:
    """Every parameter random and of a size that matters, float32 NumPy."""
    model = Decoder(dataclasses.replace(config, dtype="float32"))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        values = rng.normal(size=x.shape) * size
        gain = "scale" in jax.tree_util.keystr(path)
        return (1 + values if gain else values).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed)["params"])


@functools.cache
def tiny_model(variant: str = "pre_ln", **changes) -> LoadedModel:
    config = config_of(variant, **changes)
    return LoadedModel(config, parameters(config), make_tokenizer())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def log_probabilities(tokens, model: LoadedModel) -> np.ndarray:
    """(T, V): the distribution after each token of one sequence, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    return log_softmax(numpy_decoder.document_logits(np.asarray(tokens), params, model.config))


def random_adapter(name: str, config: DecoderConfig, seed: int, rank: int = 4) -> Adapter:
    """An adapter that changes what the model says."""
    lora = LoraConfig(rank=rank, alpha=2.0 * rank)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.15, jnp.float32),
        init_lora(config, lora, jax.random.key(seed)),
    )
    return Adapter(name, lora, params)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Tokens that the tokenizer has, no end tokens."""
    rng = np.random.default_rng([seed, length])
    return tuple(int(x) for x in rng.integers(2, 90, length))
