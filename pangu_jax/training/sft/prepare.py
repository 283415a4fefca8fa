"""What a run needs before its first step: the model, the examples, the batches."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.models.lora import fingerprint
from pangu_jax.training.sft.builtin import built_in_chats, built_in_pairs, tiny_model
from pangu_jax.training.sft.config import BUILT_IN_DATA, SftConfig
from pangu_jax.training.sft.encode import Encoder, EncodeReport, Example
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.files import read_records
from pangu_jax.training.sft.packing import FirstFitRows, RowShape, row_shape
from pangu_jax.training.sft.records import Chat, Pair, parse_chat, parse_pair
from pangu_jax.weights import LoadedModel, LoadedTokenizer, load_weights

Given = Iterable[Chat | Pair | dict[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class Examples:
    """Encoded examples of a run. shape: of a row, the same for both. reports: what was left out."""

    train: list[Example]
    held_out: list[Example]
    shape: RowShape
    reports: dict[str, EncodeReport]

    @property
    def identity(self) -> str:
        """SHA-256 of every token that the run trains or evaluates on."""
        digest = hashlib.sha256()
        for name, examples in (("train", self.train), ("held_out", self.held_out)):
            digest.update(name.encode())
            for example in examples:
                digest.update(np.float32(example.weight).tobytes())
                for sequence in example.sequences:
                    digest.update(sequence.tokens.tobytes() + sequence.learn.tobytes())
        return digest.hexdigest()

    def rows_of_epoch(self, seed: int) -> int:
        """Rows of the first epoch."""
        return FirstFitRows(self.train, self.shape, seed=seed).rows_of_epoch(0)


def load_base(config: SftConfig, name: str | None = None) -> LoadedModel:
    """The base, or the model of that name, in the run's type and with the run's choices.

    A base of which all parameters are trained is float32, whatever the run computes in.

    Raises:
      WeightsError: what `load_weights` refuses. FineTuneError: no tokenizer.
    """
    trained = name is None and config.tune == "full"
    name = name or config.base
    dtype = "float32" if trained else config.dtype
    model = tiny_model() if name == "tiny" else load_weights(name, dtype=dtype)
    if model.tokenizer is None:
        raise FineTuneError(
            f"{name} carries no tokenizer; put the tokenizer.json there that it was trained with."
        )
    return with_choices(config, model)


def with_choices(config: SftConfig, model: LoadedModel) -> LoadedModel:
    """The model with the run's type, rematerialisation and chat template."""
    tokenizer = model.tokenizer
    if config.data.chat_template is not None:
        path = Path(config.data.chat_template)
        if not path.is_file():
            raise FineTuneError(
                f"There is no file {path}; set --config.data.chat_template to a Jinja template."
            )
        special = dataclasses.replace(
            tokenizer.special, chat_template=path.read_text(encoding="utf-8")
        )
        tokenizer = LoadedTokenizer(tokenizer.tokenizer, special)
    changed = dataclasses.replace(model.config, dtype=config.dtype, remat=config.remat)
    return LoadedModel(changed, model.params, tokenizer)


def load_examples(
    config: SftConfig, tokenizer: LoadedTokenizer, train: Given = None, held_out: Given = None
) -> Examples:
    """Training and held-out examples, encoded.

    Args:
      train, held_out: given by a program: records, or parsed ones; None: those of config.data.

    Raises:
      FineTuneError: what reading, parsing and encoding refuse; too few examples to set some aside.
    """
    data = config.data
    parsed = _parsed(config, train, data.train, "data.train")
    held_source = held_out is not None or data.held_out is not None
    if held_source:
        held = _parsed(config, held_out, data.held_out, "data.held_out")
    else:
        parsed = list(parsed)
        count = max(1, round(len(parsed) * data.held_out_fraction))
        if len(parsed) < 2:
            raise FineTuneError(
                f"{len(parsed)} example(s) cannot be divided into training and held-out ones; give "
                "more, or name a --config.data.held_out."
            )
        order = np.random.default_rng(data.split_seed).permutation(len(parsed))
        chosen = set(order[:count].tolist())
        held = [x for i, x in enumerate(parsed) if i in chosen]
        parsed = [x for i, x in enumerate(parsed) if i not in chosen]
    encoded, reports = {}, {}
    for name, source in (("train", parsed), ("held_out", held)):
        encoder = Encoder(
            tokenizer, train_on=data.train_on, max_tokens=config.seq_len, too_long=data.too_long
        )
        if name == "held_out":
            source = itertools.islice(source, data.held_out_max)
        encoded[name], reports[name] = encoder.encode(source), encoder.report
    shape = row_shape(encoded["train"] + encoded["held_out"], config.seq_len)
    return Examples(encoded["train"], encoded["held_out"], shape, reports)


def base_identity(model: LoadedModel) -> str:
    """The base's fingerprint, which an adapter carries."""
    return fingerprint(model.config, model.params)


def _parsed(config: SftConfig, given: Given, path: str | None, key: str):
    pairs = config.objective == "dpo"
    if given is None and path == BUILT_IN_DATA:
        return built_in_pairs() if pairs else built_in_chats()
    if given is None and path is None:
        raise FineTuneError(
            f"--config.{key} names no examples; set it to a file or folder of JSON lines or "
            "Parquet (docs/fine_tuning.md)."
        )
    if given is None:
        records: Iterable = read_records(path)
    else:
        records = ((f"{key}[{i}]", x) for i, x in enumerate(given))
    return _parse_all(config, records, pairs)


def _parse_all(config, records, pairs: bool):
    columns, raw = config.data.columns, config.data.template == "none"
    wanted: type = Pair if pairs else Chat
    parse: Callable[..., Chat | Pair] = parse_pair if pairs else parse_chat
    for where, record in records:
        if isinstance(record, Chat | Pair):
            if not isinstance(record, wanted):
                raise FineTuneError(
                    f"{where} is a {type(record).__name__}; --config.objective="
                    f"{config.objective} takes {wanted.__name__}s."
                )
            yield record
        elif pairs:
            yield parse(record, where, columns)
        else:
            yield parse(record, where, columns, raw=raw)


def check_vocabulary(student: LoadedModel, teacher: LoadedModel) -> None:
    """Raises FineTuneError unless both models read the same tokens."""
    ours, theirs = (m.tokenizer.tokenizer.get_vocab() for m in (student, teacher))
    if ours != theirs or student.config.vocab_size != teacher.config.vocab_size:
        odd: Sequence[str] = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda x: x[1])
        raise FineTuneError(
            "The teacher's tokens are not the student's (vocabularies of "
            f"{student.config.vocab_size} and {teacher.config.vocab_size}; first difference: "
            f"{odd[0] if odd else 'the size'}). Distillation on logits needs one tokenizer: choose "
            "a --config.distill.teacher of the same family."
        )
