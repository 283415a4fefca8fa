"""Hidden states and first-token probabilities of a model, kept on disk.

Per question: log-probabilities of Yes and No as the first token (the larger of both is the model's
own answer, the naive decision: over the whole vocabulary a small model's likeliest token is often
neither), and hidden states of chosen layers at two places: the last token of the prompt
(`pre_token`) and the generated token, appended (`first_token`, which is the paper's).

Layers are negative and count as Hugging Face's `hidden_states` do: -1 is after the final norm, -k
is the stream after block n - k (0-based), so -2 is not the last block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import HiddenStatesRequest
from agents_jax.tools.meco.answers import NO, YES, answer_logprobs, answer_tokens
from agents_jax.tools.meco.contrast import Pair
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.identity import check_model, reference_state, same_model
from agents_jax.tools.meco.prompts import messages

POSITIONS = ("first_token", "pre_token")
ARRAYS = ("logprobs", "summed", "first_token", "pre_token", "tokens")
"""Fields of Observations with one entry per example."""
UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)
"""What reading a damaged .npz file may raise."""
_CHUNK = 32  # questions between two saves


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
    """What was read of a model, in the order of the examples asked for.

    layers: negative. logprobs: float64 [N, 2] of 'Yes' and 'No'; summed: the same over variants.
    first_token, pre_token: float32 [N, C, D]. tokens: int [N], of prompt and answer.
    """

    layers: tuple[int, ...]
    logprobs: np.ndarray
    summed: np.ndarray
    first_token: np.ndarray
    pre_token: np.ndarray
    tokens: np.ndarray

    @property
    def says_yes(self) -> np.ndarray:
        """The model's own answer, bool [N]: Yes where it is at least as likely as No."""
        return self.logprobs[:, 0] >= self.logprobs[:, 1]

    @property
    def yes_margin(self) -> np.ndarray:
        """log P(Yes) - log P(No), float64 [N]; P(Yes) among both is its sigmoid."""
        return self.logprobs[:, 0] - self.logprobs[:, 1]

    def states(self, position: str) -> np.ndarray:
        """Hidden states [N, C, D] at 'first_token' or 'pre_token'."""
        if position not in POSITIONS:
            raise MecoError(f"position {position!r} is unknown; allowed: {', '.join(POSITIONS)}.")
        return self.first_token if position == "first_token" else self.pre_token

    def take(self, places: Sequence[int]) -> Observations:
        """Those of some examples."""
        at = np.asarray(places, int)
        return dataclasses.replace(self, **{name: getattr(self, name)[at] for name in ARRAYS})

    def joined(self, other: Observations) -> Observations:
        """Those of both, one after the other."""
        both = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS
        }
        return dataclasses.replace(self, **both)


class StateStore:
    """Observations of one model in a folder, by question; asks the model for what is lacking.

    A folder holds `model.json` and one `.npz` per chunk of questions. What is there is kept, so a
    run that was ended goes on where it was. Arrays are read with allow_pickle=False.

    Args:
      folder: created where absent. layers: negative ones. progress: told (done, total, what).

    Raises:
      MissingCapability: the model gives no hidden states.
      MecoError: the folder belongs to another model or other layers.
    """

    def __init__(
        self, model: LanguageModel, folder: str | pathlib.Path, layers: Sequence[int], *,
        progress: Callable[[int, int, str], None] | None = None,
    ):  # fmt: skip
        check_model(model)
        self.layers = tuple(int(layer) for layer in layers)
        if not self.layers or max(self.layers) >= 0 or len(set(self.layers)) < len(self.layers):
            raise MecoError(
                f"layers={self.layers} must be different negative numbers, such as (-5, -4, -3)."
            )
        self._model = model
        self._folder = pathlib.Path(folder)
        self._progress = progress or (lambda done, total, what: None)
        self._kept: dict[str, tuple] = {}
        self._answer_tokens: tuple[int, int] | None = None
        self._open()

    def _open(self) -> None:
        self.reference = reference_state(self._model)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "model.json"
        if not path.exists():
            facts = {
                "model": self._model.name,
                "layers": list(self.layers),
                "reference": self.reference.tolist(),
            }
            _write_text(path, json.dumps(facts))
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            reference = np.asarray(facts["reference"], np.float32)
            layers = tuple(facts["layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise MecoError(f"{path} is damaged ({error}); delete the folder.") from error
        if layers != self.layers or not same_model(reference, self.reference):
            raise MecoError(
                f"{self._folder} holds hidden states of {facts.get('model')!r}, layers {layers}, "
                f"not of {self._model.name!r}, layers {self.layers}. Use another --workdir, or "
                "delete that folder."
            )
        for file in sorted(self._folder.glob("states-*.npz")):
            self._read(file)

    def _read(self, file: pathlib.Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                keys = [str(key) for key in arrays["keys"]]
                rows = [arrays[name] for name in ARRAYS]
        except UNREADABLE as error:
            raise MecoError(f"{file} is damaged ({error}); delete it and run again.") from error
        for index, key in enumerate(keys):
            self._kept[key] = tuple(row[index] for row in rows)

    @staticmethod
    def key(example: Example) -> str:
        """Hash of all that the model is shown."""
        shown = json.dumps(messages(example), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def observe(self, examples: Sequence[Example], what: str = "questions") -> Observations:
        """Observations of the examples; the model is asked about those that are new."""
        keys = [self.key(example) for example in examples]
        lacking = {k: e for k, e in zip(keys, examples, strict=True) if k not in self._kept}
        # Texts of like length together, so that batches hold little padding.
        order = sorted(lacking, key=lambda k: sum(len(m["content"]) for m in messages(lacking[k])))
        for start in range(0, len(order), _CHUNK):
            self._progress(start, len(order), what)
            chunk = order[start : start + _CHUNK]
            self._ask([lacking[key] for key in chunk], chunk)
        self._progress(len(order), len(order), what)
        found = [self._kept[key] for key in keys]
        if not found:
            raise MecoError("there are no examples to observe.")
        columns = [np.stack(column) for column in zip(*found, strict=True)]
        return Observations(self.layers, *columns)

    def _ask(self, examples: Sequence[Example], keys: Sequence[str]) -> None:
        chats = [messages(example) for example in examples]
        logprobs, summed = answer_logprobs(self._model, chats)
        yes = logprobs[:, 0] >= logprobs[:, 1]
        if self._answer_tokens is None:
            self._answer_tokens = answer_tokens(self._model, chats[0])
        answers = [0 if is_yes else 1 for is_yes in yes]
        found = self._model.hidden_states(
            [
                HiddenStatesRequest(
                    messages=chat, continuation=(YES, NO)[answer][0], layers=self.layers,
                    # The first token of the answer, and the one before it.
                    positions=(-self._answer_tokens[answer], -self._answer_tokens[answer] - 1),
                    normed=True, tag="meco",
                )
                for chat, answer in zip(chats, answers, strict=True)
            ]
        )  # fmt: skip
        values = np.stack([np.asarray(f.values, np.float32) for f in found])
        arrays = {
            "logprobs": logprobs,
            "summed": summed,
            "first_token": values[:, :, 0],
            "pre_token": values[:, :, 1],
            "tokens": np.array([f.usage.prompt_tokens for f in found]),
        }
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        _write_arrays(self._folder / f"states-{name}.npz", keys=np.array(keys), **arrays)
        for index, key in enumerate(keys):
            self._kept[key] = tuple(array[index] for array in arrays.values())

    def contrast(self, pairs: Sequence[Pair], name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Hidden states [C, T, D] of the responses of both members of each pair, kept as `name`."""
        requests = [request for pair in pairs for request in (pair.strong, pair.weak)]
        asked = hashlib.sha256(repr([r.content() for r in requests]).encode()).hexdigest()[:16]
        path = self._folder / f"contrast-{name}-{asked}.npz"
        if not path.exists():
            values = []
            for start in range(0, len(requests), _CHUNK):
                self._progress(start, len(requests), f"contrast {name}")
                chunk = self._model.hidden_states(requests[start : start + _CHUNK])
                values += [np.asarray(found.values, np.float32) for found in chunk]
            self._progress(len(requests), len(requests), f"contrast {name}")
            _write_arrays(path, **{f"state{i}": value for i, value in enumerate(values)})
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values = [arrays[f"state{i}"] for i in range(len(requests))]
        except UNREADABLE as error:
            raise MecoError(f"{path} is damaged ({error}); delete it and run again.") from error
        return list(zip(values[::2], values[1::2], strict=True))


def _write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a whole file or none."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def _write_text(path: pathlib.Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
