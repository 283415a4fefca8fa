"""The models' entries at the sizes of each data set (spec sections 2.1 and 7), and as tuned."""

from __future__ import annotations

from typing import Any

from recsys_jax.sequential.bpr_mf import BPRMFConfig
from recsys_jax.sequential.config import model_entry
from recsys_jax.sequential.fuxi_alpha import FuXiAlphaConfig
from recsys_jax.sequential.gru4rec import GRU4RecConfig
from recsys_jax.sequential.hstu import HSTUConfig
from recsys_jax.sequential.llama import LlamaConfig
from recsys_jax.sequential.narm import NARMConfig
from recsys_jax.sequential.sasrec import SASRecConfig

ML100K_DIM = 64
# The best of search.py's grid by validation NDCG@10 (seed 0); LLaMa and NARM were not searched.
ML100K_TUNED: dict[str, dict[str, float]] = {
    "fuxi_alpha": dict(learning_rate=3e-3, dropout_rate=0.2),
    "hstu": dict(learning_rate=6e-3, dropout_rate=0.4),
    "sasrec": dict(learning_rate=6e-3, dropout_rate=0.2),
    "gru4rec": dict(learning_rate=3e-3, dropout_rate=0.4),
    # Pairs instead of sequences: as many epochs as the others, in smaller steps.
    "bpr_mf": dict(batch_size=2048, steps=2000, eval_every=250),
}


def ml100k_entry(model: str) -> dict[str, Any]:
    """One model as tuned on MovieLens-100K."""
    return entry(model, ML100K_DIM, **ML100K_TUNED.get(model, {}))


def entry(model: str, dim: int, heads: int = 1, layers: int = 2, **over: Any) -> dict[str, Any]:
    """One model at width `dim`; attention models split it into `heads`."""
    overrides = {k: over.pop(k) for k in ("learning_rate", "weight_decay", "batch_size", "steps",
                                          "eval_every") if k in over}  # fmt: skip
    head = dict(num_heads=heads, qk_dim=dim // heads, v_dim=dim // heads)
    common = dict(embedding_dim=dim, num_layers=layers) | over
    config = {
        "fuxi_alpha": lambda: FuXiAlphaConfig(**head | common),
        "hstu": lambda: HSTUConfig(**head | common),
        "sasrec": lambda: SASRecConfig(num_heads=heads, **dict(ffn_dim=dim) | common),
        "llama": lambda: LlamaConfig(num_heads=heads, **common),
        "gru4rec": lambda: GRU4RecConfig(**dict(hidden_dim=dim) | common | dict(num_layers=1)),
        "narm": lambda: NARMConfig(**dict(hidden_dim=dim) | common | dict(num_layers=1)),
        "bpr_mf": lambda: BPRMFConfig(embedding_dim=dim),
        "most_popular": lambda: None,
    }[model]()
    return model_entry(model, config, **overrides)
