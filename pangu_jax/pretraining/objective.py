"""The loss of a run on a packed batch, and its evaluation by domain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pangu_jax.data.text import Mixture, text_batches
from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.models.loss import cross_entropy
from pangu_jax.parallel.sharding import batch_part, global_batch
from pangu_jax.pretraining.corpus import Corpus
from pangu_jax.pretraining.layer_statistics import LayerStatistics
from pangu_jax.training.state import LossSums


def make_loss(config: DecoderConfig, z_loss: float = 0.0) -> Callable[..., LossSums]:
    """(params, batch, key) -> LossSums over the tokens that have a label.

    Documents lie in the rows of a batch in order, as `text_batches` packs them.
    """
    model = Decoder(config)

    def loss(params, batch, rng):
        del rng  # no dropout: the paper mentions none
        out = model.apply(
            {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"],
            row_order=True, method="run",
        )  # fmt: skip
        return cross_entropy(
            out.hidden, out.head, batch["labels"], chunk=config.loss_chunk, z_loss=z_loss
        )

    return loss


class HeldOut:
    """Loss, perplexity and bits per byte of each domain on the same held-out rows every time.

    Args:
      rows: per domain, of `seq_len` tokens.
    """

    def __init__(self, corpus: Corpus, mesh: Mesh, *, seq_len: int, rows: int):
        self._mesh = mesh
        self._losses: dict[DecoderConfig, Any] = {}
        self.batches: dict[str, dict[str, np.ndarray]] = {}
        self.bytes_per_token: dict[str, float] = {}
        part, parts = batch_part(mesh)
        ways = mesh.shape["data"]
        rows = -(-rows // ways) * ways
        for domain in corpus.held_out.domains:
            if not len(corpus.held_out.documents_of(domain)):
                continue
            whole = next(iter(text_batches(
                corpus.held_out, Mixture({domain: 1.0}), seq_len=seq_len, batch_rows=rows,
            )))  # fmt: skip
            whole.pop("domains")
            labels = whole["labels"][whole["labels"] >= 0]
            text = corpus.tokenizer.decode(labels.tolist(), skip_special_tokens=True)
            self.bytes_per_token[domain] = len(text.encode()) / max(len(labels), 1)
            own = slice(part * rows // parts, (part + 1) * rows // parts)
            self.batches[domain] = {name: x[own] for name, x in whole.items()}

    def evaluate(
        self, config: DecoderConfig, params: Any, step: int,
        statistics: LayerStatistics | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """{'loss' (mean of the domains), 'perplexity/<domain>', 'bits_per_byte/<domain>', ...}.

        config: of the model with the RoPE base of the phase that `params` are from.
        statistics: where gains and activations of all layers go, or None.
        """
        if config not in self._losses:
            loss = make_loss(config)
            self._losses[config] = jax.jit(lambda params, batch: loss(params, batch, None))
        values, losses = {}, []
        placed = {d: global_batch(batch, self._mesh) for d, batch in self.batches.items()}
        for domain, batch in placed.items():
            sums = self._losses[config](params, batch)
            loss = float(sums.total) / max(float(sums.weight), 1.0)
            losses.append(loss)
            values[f"perplexity/{domain}"] = math.exp(min(loss, 700.0))
            values[f"bits_per_byte/{domain}"] = loss / math.log(2) / self.bytes_per_token[domain]
        if statistics is not None and placed:
            statistics.write(config, params, step, next(iter(placed.values())))
        return {"loss": float(np.mean(losses))} | values


def with_rope_base(config: DecoderConfig, rope_base: float) -> DecoderConfig:
    """The same model with the rotary base of a phase (adjusted base frequency, report 3.2)."""
    return dataclasses.replace(config, rope_base=rope_base)
