"""The probe as a small file, and decisions made with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import HiddenStatesRequest
from agents_jax.llm.results import Usage
from agents_jax.tools.meco.answers import NO, YES, answer_logprobs
from agents_jax.tools.meco.collect import POSITIONS, UNREADABLE
from agents_jax.tools.meco.decision import DualThreshold, Threshold
from agents_jax.tools.meco.errors import MecoError, ProbeMismatch
from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.identity import check_model, reference_state, same_model
from agents_jax.tools.meco.prompts import messages, question

_FORMAT = 1
_ARRAYS = ("direction", "center", "reference")


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A direction at one layer and what turns scores into decisions.

    direction, center: float32 [D]. layer: negative. position: 'first_token' or 'pre_token'. offset,
    scale: of the score. rule: thresholds. template: of the question it was fitted with.
    instructions: texts of the contrast behind it, for the reader; () for a supervised probe.
    model: name of the model. reference: float32 [D], tells its weights from others.
    about: what it was fitted on.
    """

    direction: np.ndarray
    center: np.ndarray
    layer: int
    position: str
    offset: float
    scale: float
    rule: DualThreshold | Threshold
    template: str
    instructions: tuple[str, ...]
    model: str
    reference: np.ndarray
    about: str = ""

    def __post_init__(self):
        if self.position not in POSITIONS:
            raise MecoError(f"position {self.position!r}; allowed: {', '.join(POSITIONS)}.")

    def score(self, states: np.ndarray) -> np.ndarray:
        """Scores float64 [N] of hidden states [N, D] at the probe's layer."""
        states = np.asarray(states, np.float64)
        return ((states - self.center) @ self.direction.astype(np.float64) - self.offset) / (
            self.scale
        )

    def save(self, path: str | pathlib.Path) -> None:
        """Writes one .npz file: three vectors, and the rest as JSON in UTF-8 bytes."""
        facts = {
            "format": _FORMAT,
            "layer": self.layer,
            "position": self.position,
            "offset": self.offset,
            "scale": self.scale,
            "rule": {"kind": type(self.rule).__name__, **_numbers(dataclasses.asdict(self.rule))},
            "template": self.template,
            "template_hash": template_hash(self.template),
            "instructions": list(self.instructions),
            "model": self.model,
            "about": self.about,
        }
        encoded = np.frombuffer(json.dumps(facts, ensure_ascii=False).encode(), np.uint8)
        arrays = {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, facts=encoded, **arrays)
        part.replace(path)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Probe:
        """Reads a probe; nothing in the file is executed.

        Raises:
          MecoError: no file, not a probe, or one whose question has been reworded since.
        """
        path = pathlib.Path(path)
        if not path.exists():
            raise MecoError(
                f"there is no probe {str(path)!r}. A study writes them to WORKDIR/probes: "
                "python launch.py --config=configs/agents/meco.py --workdir=WORKDIR"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: np.asarray(arrays[name], np.float32) for name in _ARRAYS}
                facts = json.loads(arrays["facts"].tobytes().decode("utf-8"))
            rule = dict(facts["rule"])
            kinds: Mapping[str, Any] = {"DualThreshold": DualThreshold, "Threshold": Threshold}
            made = kinds[rule.pop("kind")](
                **{k: v if k == "orientation" else float(v) for k, v in rule.items()}
            )
            probe = cls(
                **found, layer=int(facts["layer"]), position=str(facts["position"]),
                offset=float(facts["offset"]), scale=float(facts["scale"]), rule=made,
                template=str(facts["template"]), instructions=tuple(facts["instructions"]),
                model=str(facts["model"]), about=str(facts["about"]),
            )  # fmt: skip
            wording = facts["template_hash"]
        except (*UNREADABLE, TypeError, AttributeError) as error:
            raise MecoError(f"{str(path)!r} is no probe that can be read: {error}") from error
        if wording != template_hash(probe.template):
            raise MecoError(
                f"{str(path)!r} was fitted with another wording of the question "
                f"{probe.template!r}; thresholds do not carry over. Run the study again."
            )
        return probe

    def check(self, model: LanguageModel) -> None:
        """Refuses a model that is not the probe's.

        Raises:
          MissingCapability: hidden states cannot be had of it. ProbeMismatch: other weights.
        """
        check_model(model)
        found = reference_state(model)
        if not same_model(self.reference, found):
            width = f"width {len(self.reference)}"
            raise ProbeMismatch(
                f"the probe was made with {self.model!r} ({width}), and {model.name!r} "
                f"(width {len(found)}) gives other hidden states for the same sentence. A probe "
                "reads one model's directions: run the study with this model, or load the other."
            )

    def decide(
        self, model: LanguageModel, query: str, tools: Sequence[Mapping[str, Any]] = (),
        history: Sequence[Mapping[str, str]] = (),
    ) -> ProbeDecision:  # fmt: skip
        """Whether the query needs one of the tools.

        Two requests: the model's own Yes or No, and the hidden state at it or before it. A model
        that keeps what it has read, as the local engine does, reads of the prompt no more than the
        end anew for the second one. Call `check` once before.

        Args:
          tools: function descriptions {'name', 'description', 'parameters'}. history: messages
            before the query.
        """
        start = time.perf_counter()
        example = Example(
            id="query", query=query, needed=False, tools=tuple(tools), template=self.template,
            history=tuple({"role": m["role"], "content": m["content"]} for m in history),
        )  # fmt: skip
        chat = messages(example)
        (logprobs,), _ = answer_logprobs(model, [chat])
        yes = bool(logprobs[0] >= logprobs[1])
        place: dict[str, Any] = {"positions": (-1,)}
        if self.position == "first_token":  # the first of the answer's tokens, mostly its only one
            place = {"continuation": YES[0] if yes else NO[0], "positions": "continuation"}
        request = HiddenStatesRequest(
            messages=chat, layers=(self.layer,), normed=True, tag="meco", **place
        )
        (found,) = model.hidden_states([request])
        score = float(self.score(np.asarray(found.values, np.float32)[0, :1])[0])
        if isinstance(self.rule, DualThreshold):
            call = bool(self.rule.decide(np.array([score]), np.array([yes]))[0])
        else:
            call = bool(self.rule.decide(np.array([score]))[0])
        p_yes = float(1 / (1 + np.exp(np.clip(logprobs[1] - logprobs[0], -700, 700))))
        # The prompt is sent twice, the answer with it the second time only. Of the first request
        # nothing but log-probabilities comes back; a model that counts no tokens says 0.
        sent = found.usage.prompt_tokens
        answer = found.values.shape[1] if self.position == "first_token" else 0
        usage = Usage(max(2 * sent - answer, 0), 1, found.usage.cached_tokens)
        return ProbeDecision(call, score, yes, p_yes, usage, time.perf_counter() - start)


@dataclasses.dataclass(frozen=True)
class ProbeDecision:
    """A decision. yes, p_yes: the model's own answer and its probability among Yes and No; seconds,
    usage: what deciding took, the prompt counted once for each of both requests, and cached tokens
    as far as the model says them with hidden states.
    """

    call: bool
    score: float
    yes: bool
    p_yes: float
    usage: Usage
    seconds: float


def template_hash(template: str) -> str:
    """Hash of the wording of a question, so that a probe is not used with another."""
    example = Example(id="x", query="{q}", needed=False, template=template, shown="{s}")
    return hashlib.sha256(question(example).encode()).hexdigest()[:16]


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinities; they are written as text, which float() reads."""
    return {k: v if isinstance(v, str) else repr(float(v)) for k, v in values.items()}
