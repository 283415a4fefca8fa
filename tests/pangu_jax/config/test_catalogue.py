"""The list of configurations: every variant can be built, and mistakes in names are one message."""

from __future__ import annotations

import pathlib

import pytest

from pangu_jax.config import catalogue

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_every_variant_builds_and_says_what_it_costs():
    for path in catalogue.files(ROOT):
        module = catalogue.load(path)
        assert (module.__doc__ or "").strip() and "launch.py" in module.__doc__
        assert "debug" in module.VARIANTS, path
        for name, variant in module.VARIANTS.items():
            assert variant.what and variant.time and variant.expect, (path, name)
            assert module.get_config(name).experiment
        with pytest.raises(ValueError, match="unknown variant 'nonsense'; known: "):
            module.get_config("nonsense")


def test_a_file_that_is_no_configuration(tmp_path):
    for name, text, message in (
        ("run.sh", "echo", "a Python file"),
        ("own.py", "VARIANTS = {}", "no get_config"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            catalogue.check(ROOT, str(tmp_path / name))
    with pytest.raises(ValueError, match="Did you mean 'configs/recsys/hstu.py'"):
        catalogue.check(ROOT, "configs/recsys/hstuu.py:ml100k")
    with pytest.raises(ValueError, match="no variant 'ml100'.*Did you mean 'ml100k'"):
        catalogue.check(ROOT, "configs/recsys/hstu.py:ml100")
