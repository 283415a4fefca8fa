"""Gains and activations of every layer over a run: the report's Figures 9 and 10.

One record per evaluation in a JSONL file, and the same numbers as TensorBoard scalars.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.training.metrics_writer import open_tensorboard

STATISTICS = "layer_statistics.jsonl"  # the file's name in a run's folder
NORMS = ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")


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


class LayerStatistics:
    """Writes them: called with (model config, params, step, batch) after an evaluation.

    Args:
      file: JSONL file to append to.
      tensorboard: folder of event files of their own, or None.
      captures: compiled functions, shared by several runs of the same models.
    """

    def __init__(
        self, file: pathlib.Path, tensorboard: pathlib.Path | None = None,
        captures: dict[DecoderConfig, Any] | None = None,
    ):  # fmt: skip
        self._file, self._folder = file, tensorboard
        self._captures = {} if captures is None else captures

    def write(self, config: DecoderConfig, params: Any, step: int, batch: Any) -> None:
        """Appends the record of `step`; every process calls it, the first one writes."""
        captured = jax.tree.map(np.asarray, self._capture(config)(params, batch))
        record = {
            "step": step,
            "gains": gain_statistics(params),
            "activations": jax.tree.map(lambda x: x.tolist(), captured),
        }
        if jax.process_index() == 0:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._to_tensorboard(record)

    def _capture(self, config):
        if config not in self._captures:
            model = Decoder(config)

            def statistics(params, batch):
                out = model.apply(
                    {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"],
                    method="run", capture=("statistics",),
                )  # fmt: skip
                return out.captured["statistics"]

            self._captures[config] = jax.jit(statistics)
        return self._captures[config]

    def _to_tensorboard(self, record):
        # Opened anew each time: a killed process leaves nothing behind, and a resumed run hides
        # what it does again.
        board = self._folder and open_tensorboard(self._folder, record["step"])
        if not board:
            return
        for group in ("gains", "activations"):
            for place, values in record[group].items():
                for statistic, layers in values.items():
                    for layer, value in enumerate(np.ravel(layers)):
                        name = f"{group}/{place}_{statistic}/layer_{layer:02d}"
                        board.add_scalar(name, float(value), record["step"])
        board.close()


def read_statistics(file: pathlib.Path) -> list[dict[str, Any]]:
    """Records of the file, the last one of each step, ascending."""
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
