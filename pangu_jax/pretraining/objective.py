"""The loss of a run on a packed batch, and its evaluation by domain."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pangu_jax.data.text import Mixture, text_batches
from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.models.loss import cross_entropy
from pangu_jax.parallel.sharding import batch_part, global_batch
from pangu_jax.pretraining.corpus import Corpus
from pangu_jax.training.state import LossSums

NORMS = ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")


def make_loss(config: DecoderConfig, z_loss: float = 0.0) -> Callable[..., LossSums]:
    """(params, batch, key) -> LossSums over the tokens that have a label."""
    model = Decoder(config)

    def loss(params, batch, rng):
        del rng  # no dropout: the paper mentions none
        out = model.apply(
            {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"],
            method="run",
        )  # fmt: skip
        return cross_entropy(
            out.hidden, out.head, batch["labels"], chunk=config.loss_chunk, z_loss=z_loss
        )

    return loss


class HeldOut:
    """Loss, perplexity and bits per byte of each domain on the same held-out rows every time.

    Args:
      rows: per domain, of `seq_len` tokens.
      statistics_file: where gains and activations of all layers go, or None.
    """

    def __init__(
        self, corpus: Corpus, config: DecoderConfig, mesh: Mesh, *, seq_len: int, rows: int,
        statistics_file: pathlib.Path | None = None,
    ):  # fmt: skip
        self._mesh, self._file = mesh, statistics_file
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
        loss, model = make_loss(config), Decoder(config)
        self._loss = jax.jit(lambda params, batch: loss(params, batch, None))

        def statistics(params, batch):
            out = model.apply(
                {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"],
                method="run", capture=("statistics",),
            )  # fmt: skip
            return out.captured["statistics"]

        self._statistics = jax.jit(statistics)

    def __call__(self, params: Any, step: int) -> dict[str, float]:
        """{'loss' (mean of the domains), 'perplexity/<domain>', 'bits_per_byte/<domain>', ...}."""
        values, losses = {}, []
        placed = {d: global_batch(batch, self._mesh) for d, batch in self.batches.items()}
        for domain, batch in placed.items():
            sums = self._loss(params, batch)
            loss = float(sums.total) / max(float(sums.weight), 1.0)
            losses.append(loss)
            values[f"perplexity/{domain}"] = math.exp(min(loss, 700.0))
            values[f"bits_per_byte/{domain}"] = loss / math.log(2) / self.bytes_per_token[domain]
        if self._file is not None and placed:
            self._write_statistics(params, step, next(iter(placed.values())))
        return {"loss": float(np.mean(losses))} | values

    def _write_statistics(self, params, step, batch):
        captured = self._statistics(params, batch)
        record = {"step": step, "gains": gain_statistics(params)} | {
            "activations": jax.tree.map(lambda x: np.asarray(x).tolist(), captured)
        }
        if jax.process_index() == 0:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


@jax.jit
def _moments(scale):
    return jnp.mean(scale, -1), jnp.std(scale, -1)


def gain_statistics(params: Any) -> dict[str, dict[str, list[float]]]:
    """{norm: {'mean': [L], 'std': [L]}} of the gains of every layer's norms."""
    layers, out = params["layers"], {}
    for name in NORMS:
        if name in layers:
            mean, std = _moments(layers[name]["scale"])
            out[name] = {"mean": np.asarray(mean).tolist(), "std": np.asarray(std).tolist()}
    return out


def read_statistics(file: pathlib.Path) -> list[dict[str, Any]]:
    """Records of layer_statistics.jsonl, the last one of each step, ascending."""
    if not file.exists():
        return []
    records = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off by a kill; the step is written again
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def with_rope_base(config: DecoderConfig, rope_base: float) -> DecoderConfig:
    """The same model with the rotary base of a phase (adjusted base frequency, report 3.2)."""
    return dataclasses.replace(config, rope_base=rope_base)
