"""The one error of this folder, and packages that only some of its functions need."""

from __future__ import annotations

import importlib
from types import ModuleType


class WeightsError(ValueError):
    """Weights or a tokenizer that cannot be read or written; the text says which and what to do."""


def require(package: str) -> ModuleType:
    """Imports a package that a core installation does not have.

    Raises:
      WeightsError: it is not installed; the text says how to get it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"The package {package} is needed to read or write this; run `pip install {package}`."
        ) from error
