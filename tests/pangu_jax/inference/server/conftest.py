"""Puts this folder on the path for `scripted_engine.py`; a tokenizer for all tests."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def loaded():
    """Byte-level tokenizer of 256 bytes and the marks of ChatML."""
    import scripted_engine

    return scripted_engine.byte_tokenizer()
