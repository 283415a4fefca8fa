"""Checkpoints of a run as language models: the base and what was tuned, behind one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import pathlib
from collections.abc import Iterator

from agents_jax.llm import LanguageModel, RecordedModel
from pangu_jax.inference.config import EngineConfig
from pangu_jax.models.lora import fingerprint, merge
from pangu_jax.training.sft import SftConfig
from pangu_jax.training.sft.prepare import load_base, with_choices
from pangu_jax.weights import LoadedModel, load_weights
from pangu_jax.weights.peft import import_peft


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A tuned model: what each tuning left (adapters in PEFT's layout or a whole model), oldest
    first. No folders: the base. name: of its recording.
    """

    name: str
    folders: tuple[pathlib.Path, ...] = ()


class Models:
    """Opens checkpoints; the base is loaded once.

    Args:
      sft: names the base and its type. engine: that answers. records: folder in which every
        checkpoint keeps its answers, so that a run that was killed asks only what it lacks.
    """

    def __init__(self, sft: SftConfig, engine: EngineConfig, records: pathlib.Path):
        self._sft, self._engine, self._records = sft, engine, records
        self.base: LoadedModel = load_base(sft)
        self._base_print = fingerprint(self.base.config, self.base.params)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """Configuration, parameters and tokenizer, adapters merged into the weights.

        Merged weights cost no time per token, and every checkpoint runs in the same compiled
        programs.

        Raises:
          WeightsError: folders that are missing or belong to another base.
        """
        model = self.base
        for folder in checkpoint.folders:
            if self._sft.tune == "full":
                model = with_choices(self._sft, load_weights(str(folder), dtype="float32"))
                continue
            adapter = import_peft(folder, model.config, base_fingerprint=self._base_print)
            merged = merge(model.params, adapter)
            model = model._replace(params=merged.params)
        return model

    @contextlib.contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[LanguageModel]:
        """The checkpoint as a model whose answers are recorded; closed and freed afterwards."""
        from agents_jax.llm.local import LocalModel
        from pangu_jax.inference.engine import Engine

        name = "/".join((self._sft.base, *map(_contents, checkpoint.folders)))
        engine = Engine(self.load(checkpoint), self._engine, model_name=name)
        record = self._records / f"{checkpoint.name}.jsonl"
        try:
            with RecordedModel(record, LocalModel(engine)) as model:
                yield model
        finally:
            del engine
            gc.collect()  # weights and pages, before the next ones are made


def _contents(folder: pathlib.Path) -> str:
    """A short hash of a folder's weights: answers of other weights are not taken for these."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
