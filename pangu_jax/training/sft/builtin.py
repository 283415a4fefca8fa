"""A model and examples of a few kilobytes, made in code: tests and first steps need no files.

The model is random; what it learns is to answer sums of small numbers in a fixed form.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.decoder import Decoder
from pangu_jax.parallel.sharding import unbox
from pangu_jax.training.sft.records import Chat, Pair
from pangu_jax.weights import LoadedModel, LoadedTokenizer, SpecialTokens

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(seed: int = 0) -> LoadedModel:
    """A random two-layer decoder of width 32 and its tokenizer: bytes, and the marks of ChatML."""
    tokenizer = tiny_tokenizer()
    config = DecoderConfig(
        vocab_size=tokenizer.tokenizer.get_vocab_size(), num_layers=2, hidden_dim=32, mlp_dim=64,
        num_heads=4, num_kv_heads=2, head_dim=8, init="traditional", embedding_std=0.1,
        tie_embeddings=True,
    )  # fmt: skip
    params = jax.jit(Decoder(config).init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
    return LoadedModel(config, unbox(params["params"]), tokenizer)


def tiny_tokenizer(template: str | None = CHATML) -> LoadedTokenizer:
    """Bytes as tokens, <|im_start|>, <|im_end|> and <|pad|>; needs the `weights` extra."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|im_start|>", "<|im_end|>", "<|pad|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    start, end, pad = (tokenizer.token_to_id(mark) for mark in marks)
    special = SpecialTokens(bos=start, eos=end, pad=pad, chat_template=template)
    return LoadedTokenizer(tokenizer, special)


def built_in_chats() -> list[Chat]:
    """100 chats: sums of digits, one or two questions each, in an order of its own."""
    pairs = list(itertools.product(range(10), repeat=2))
    order = np.random.default_rng(0).permutation(len(pairs))
    chats = []
    for number, place in enumerate(order):
        turns = [pairs[place]] if number % 3 else [pairs[place], pairs[order[number - 1]]]
        messages = []
        for a, b in turns:
            messages += [_message("user", f"{a} + {b}?"), _message("assistant", f"It is {a + b}.")]
        chats.append(Chat(messages=tuple(messages), where=f"built-in chat {number}"))
    return chats


def built_in_pairs() -> list[Pair]:
    """100 pairs: the right sum is better than one that is off by one."""
    pairs = []
    for number, (a, b) in enumerate(itertools.product(range(10), repeat=2)):
        question = _message("user", f"{a} + {b}?")
        chosen, rejected = (
            Chat(
                messages=(question, _message("assistant", f"It is {value}.")),
                where=f"built-in pair {number}",
            )
            for value in (a + b, a + b + 1)
        )
        pairs.append(Pair(chosen=chosen, rejected=rejected))
    return pairs


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
