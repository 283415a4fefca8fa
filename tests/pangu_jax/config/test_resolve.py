"""Config resolution: types, nesting, error texts."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Literal

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.config import ConfigError, differing_keys, flatten, resolve, to_dict

ROOT = pathlib.Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "bee"] = "a"
    widths: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    name: str = "x"
    flag: bool = False
    limit: float | None = None
    pair: tuple[int, str] = (1, "a")
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must be 0 or more.")


def test_config_dict_to_dataclass():
    config = ml_collections.ConfigDict(
        {
            "steps": 3,
            "limit": 2,
            "inner": {"rate": 1, "widths": [4, 5, 6]},
            "table": {"k": 1},
            "maybe": {"kind": "bee"},
        }
    )
    got = resolve(Outer, config)
    assert got == Outer(
        3, limit=2.0, inner=Inner(1.0, widths=(4, 5, 6)), table={"k": 1}, maybe=Inner(kind="bee")
    )
    assert isinstance(got.limit, float) and isinstance(got.inner.rate, float)


@given(
    st.builds(
        Outer,
        steps=st.integers(0),
        name=st.text(),
        flag=st.booleans(),
        limit=st.none() | st.floats(allow_nan=False),
        pair=st.tuples(st.integers(), st.text()),
        table=st.dictionaries(st.text(min_size=1), st.integers()),
        inner=st.builds(
            Inner,
            rate=st.floats(allow_nan=False),
            kind=st.sampled_from(["a", "bee"]),
            widths=st.lists(st.integers()).map(tuple),
        ),
        maybe=st.none()
        | st.builds(Inner, rate=st.floats(allow_nan=False), kind=st.just("a"), widths=st.just(())),
    )
)
def test_json_round_trip(value):
    assert resolve(Outer, json.loads(json.dumps(to_dict(value)))) == value


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"steps": 1, "inner": {"rat": 1.0}},
            r"Unknown config key --config.inner.rat. Did you mean --config.inner.rate\? "
            "Allowed here: kind, rate, widths",
        ),
        ({"steps": 1, "zzzzzz": 0}, "Unknown config key --config.zzzzzz. Allowed here"),
        ({"steps": "10"}, r"--config.steps: expected int, got '10' \(str\)"),
        ({"steps": True}, r"--config.steps: expected int, got True \(bool\)"),
        ({"steps": 1.5}, "--config.steps: expected int, got 1.5"),
        ({"steps": 1, "flag": 1}, "--config.flag: expected bool, got 1"),
        ({"steps": 1, "limit": "no"}, "--config.limit: expected float or None"),
        ({"steps": 1, "inner": 4}, "--config.inner: expected a group of keys"),
        (
            {"steps": 1, "inner": {"kind": "be"}},
            "--config.inner.kind is 'be'.*allowed are 'a', 'bee'. Did you mean 'bee'",
        ),
        ({"steps": 1, "inner": {"widths": [1, "x"]}}, r"--config.inner.widths\[1\]: expected int"),
        ({"steps": 1, "pair": [1]}, r"--config.pair has 1 entries .* expected 2"),
        ({"steps": 1, "table": {"k": "v"}}, "--config.table.k: expected int"),
        ({"steps": 1, "maybe": {"rat": 1}}, "Did you mean --config.maybe.rate"),
        ({}, "--config.steps is required"),
        ({"steps": -1}, "--config: steps is -1; it must be 0 or more"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ConfigError, match=message):
        resolve(Outer, config)


def test_numpy_scalars_and_unwritable_values():
    assert resolve(Outer, {"steps": np.int64(3)}).steps == 3
    assert to_dict({"a": np.float32(0.5)}) == {"a": 0.5}
    with pytest.raises(ConfigError, match="can be written into the work directory"):
        to_dict({"a": object()})


def test_flatten_and_differences():
    old, new = Outer(3), Outer(4, inner=Inner(widths=(1,)))
    assert flatten(old)["inner.widths"] == [1, 2]
    assert differing_keys(old, new) == {"steps": (3, 4), "inner.widths": ([1, 2], [1])}
    assert differing_keys({"a": 1}, {"b": 1}) == {"a": (1, "-"), "b": ("-", 1)}
    assert differing_keys({"a": 1}, {"a": True}) == {"a": (1, True)}


def test_needs_neither_ml_collections_nor_jax():
    code = (
        "import sys, pangu_jax.config; "
        'assert not {"ml_collections", "jax"} & set(sys.modules), sys.modules.keys()'
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})
