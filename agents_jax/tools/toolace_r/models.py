"""Checkpoints of a run as language models: the base and what was tuned, behind one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import pathlib
from collections.abc import Callable, Iterator

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
        """The checkpoint as a model whose answers are recorded; freed afterwards."""
        from agents_jax.llm.local import LocalModel

        # By contents, not by place: a run may go on where its files have moved.
        name = "/".join((self._base_print, *map(_contents, checkpoint.folders)))
        engine = _EngineOnDemand(lambda: self.load(checkpoint), self.base, self._engine, name)
        record = self._records / f"{checkpoint.name}.jsonl"
        try:
            with RecordedModel(record, LocalModel(engine)) as model:
                yield model
        finally:
            engine.free()


class _EngineOnDemand:
    """An engine whose weights are loaded when it is first asked: where every answer is on record,
    as in a run that goes on, they are not needed. See `agents_jax.llm.local.LocalEngine`.
    """

    adapter_names = ()

    def __init__(
        self, load: Callable[[], LoadedModel], base: LoadedModel, config: EngineConfig, name: str
    ):
        self._load, self._engine = load, None
        self.config, self.model_name = config, name
        self.context_length, self.tokenizer = config.context_length, base.tokenizer

    def completions(self, requests):
        return self._loaded().completions(requests)

    def cancel(self, request_id: str):
        return self._loaded().cancel(request_id)

    def take(self, request_id: str):
        return self._loaded().take(request_id)

    def hidden_states(self, *args, **kwargs):
        return self._loaded().hidden_states(*args, **kwargs)

    def free(self) -> None:
        """Lets go of weights and pages, before the next ones are made."""
        self._engine = None
        gc.collect()

    def _loaded(self):
        if self._engine is None:
            from pangu_jax.inference.engine import Engine

            self._engine = Engine(self._load(), self.config, model_name=self.model_name)
        return self._engine


def _contents(folder: pathlib.Path) -> str:
    """A short hash of a folder's weights: answers of other weights are not taken for these."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
