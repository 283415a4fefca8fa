"""Puts this folder on the path for `tiny_model.py`, and hands out its tokenizer."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from tiny_model import make_tokenizer

    return make_tokenizer()
