"""The real items and the official code, where the pinned wheel can be had."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from agents_jax.tools.bfcl.data import CATEGORIES, Item, load
from pangu_jax.data.wheel import WheelUnavailableError

ROOT = pathlib.Path(__file__).resolve().parents[4]


@pytest.fixture(scope="session")
def real_items() -> list[Item]:
    """All items of the pinned wheel."""
    try:
        return load(CATEGORIES)
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


@pytest.fixture(scope="session")
def peer():
    """The benchmark that runs the official code, as a module."""
    path = ROOT / "benchmarks" / "bfcl_checker.py"
    spec = importlib.util.spec_from_file_location("bfcl_checker_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
