"""What model this is: whether its hidden states can be had, its depth, whose weights it has."""

from __future__ import annotations

import numpy as np

from agents_jax.llm.capabilities import require
from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import HiddenStatesRequest
from agents_jax.tools.meco.errors import MecoError

_WHY = "MeCo reads hidden states of the model that decides"
_REFERENCE = "The quick brown fox jumps over the lazy dog."


def check_model(model: LanguageModel) -> None:
    """Refuses a model whose hidden states cannot be had, such as one behind an endpoint.

    Raises:
      MissingCapability: names what lacks and who has it.
    """
    require(model.name, model.capabilities, {"hidden_states", "chat", "score"}, _WHY)


def depth_of(model: LanguageModel) -> int:
    """Number of blocks of a local model.

    Raises:
      MecoError: a model that does not say.
    """
    depth = getattr(getattr(getattr(model, "engine", None), "model", None), "num_layers", None)
    if depth is None:
        raise MecoError(
            f"model {model.name!r} does not say how many layers it has; name them with "
            "--config.layers=(-5,-4,-3,-2)."
        )
    return int(depth)


def reference_state(model: LanguageModel) -> np.ndarray:
    """Hidden state [D] of a fixed sentence after the final norm: tells whose weights these are.

    The same weights give nearly the same vector on every device and precision, others do not.
    """
    request = HiddenStatesRequest(prompt=_REFERENCE, layers=(-1,), normed=True, tag="reference")
    (found,) = model.hidden_states([request])
    return np.asarray(found.values, np.float32)[0, 0]


def same_model(one: np.ndarray, other: np.ndarray, *, tolerance: float = 0.05) -> bool:
    """Whether two reference states come from the same weights, up to rounding."""
    if one.shape != other.shape:
        return False
    return bool(np.linalg.norm(one - other) <= tolerance * np.linalg.norm(one))
