"""Static embeddings of texts, a control that knows what words mean but sees no context.

WordLlama (https://github.com/dleemiller/WordLlama, MIT): token vectors of a large language model's
embedding table, reduced and trained for similarity of texts. The files come from its wheel; nothing
of the package is executed. A text's vector is the mean of its tokens' vectors.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.texts import tool_text
from pangu_jax.data.wheel import fetch_member

_WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
_TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"


def embed(texts: Sequence[str]) -> np.ndarray:
    """Vectors of unit length, float32 [num_texts, 256]; zeros for a text without tokens.

    Raises:
      WheelError: the files cannot be had.
    """
    table, tokenizer = _files()
    out = np.zeros((len(texts), table.shape[1]), np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if encoding.ids:
            mean = table[np.minimum(encoding.ids, len(table) - 1)].mean(axis=0)
            out[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return out


def query_vectors(examples: Sequence[Example]) -> np.ndarray:
    """Of the queries, float32 [num_examples, 256]."""
    return embed([example.query for example in examples])


def query_and_tool_vectors(examples: Sequence[Example]) -> np.ndarray:
    """Of queries and tools' texts, their products by component, and their cosine, float32
    [num_examples, 769].
    """
    query = query_vectors(examples)
    tool = embed([tool_text(example.tools) for example in examples])
    both = query * tool
    return np.hstack([query, tool, both, both.sum(axis=1, keepdims=True)])


@functools.cache
def _files():
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights, tokenizer = fetch_member("wordllama", [_WEIGHTS, _TOKENIZER])
    (table,) = load_file(weights).values()
    read = Tokenizer.from_str(pathlib.Path(tokenizer).read_text(encoding="utf-8"))
    read.no_padding()
    read.no_truncation()
    return table.astype(np.float32), read
