"""The parts of a run on the real items: nothing that is tested is ever learned from."""

import re

import pytest

from agents_jax.tools.bfcl.data import load
from agents_jax.tools.toolace_r.config import ItemsConfig, RoundsConfig
from agents_jax.tools.toolace_r.items import make_parts
from pangu_jax.data.wheel import WheelUnavailableError


@pytest.fixture(scope="module", autouse=True)
def wheel():
    try:
        load("irrelevance")
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


def words(item):
    """A stand-in for a tokenizer, fast and of the same order."""
    return len(re.findall(r"\w+|\W", str(item.functions))) // 2


BY_FUNCTION = ItemsConfig(
    train={"simple_python": 90, "live_simple": 0, "multiple": 40, "irrelevance": 60},
    test={"simple_python": 70, "live_simple": 30, "multiple": 0, "irrelevance": 50},
)
LIVE = ItemsConfig(
    protocol="live_to_nonlive",
    train={"live_simple": 0, "live_multiple": 100, "live_irrelevance": 0},
    test={"simple_python": 0, "multiple": 0, "parallel": 20, "irrelevance": 0},
)


def keys(items):
    names = {name for item in items for name in item.offered_names}
    return names | {re.sub(r"\W+", " ", i.messages[-1]["content"].lower()) for i in items}


@pytest.mark.parametrize("config", [BY_FUNCTION, LIVE], ids=["by_function", "live_to_nonlive"])
def test_no_function_and_no_question_is_in_training_and_test(config):
    parts = make_parts(config, RoundsConfig(), words)
    learned = keys(parts.pool) | keys(parts.validation)
    assert len(learned) > 200 and learned.isdisjoint(keys(parts.test))
    ids = parts.ids()
    assert set(ids["warm_up"]) <= set(ids["pool"])
    assert not set(ids["pool"]) & set(ids["validation"])
    assert all(words(item) <= config.max_prompt_tokens for p in ids for item in getattr(parts, p))


def test_sizes_are_those_asked_for():
    sizes = make_parts(BY_FUNCTION, RoundsConfig(warm_up_fraction=0.5), words).sizes()
    pool = sizes["pool"]
    assert (pool["simple_python"], pool["multiple"]) == (90, 40)
    calls = sum(n for name, n in pool.items() if name != "irrelevance")
    assert pool["irrelevance"] == int(0.125 * calls + 0.5)
    assert sum(sizes["warm_up"].values()) == round(0.5 * sum(pool.values()))
    test = sizes["test"]
    assert (test["simple_python"], test["live_simple"], test["irrelevance"]) == (70, 30, 50)
    assert sum(sizes["validation"].values()) == 24 and "irrelevance" not in sizes["validation"]


def test_the_same_seed_gives_the_same_parts():
    one, other = (make_parts(BY_FUNCTION, RoundsConfig(), words).ids() for _ in range(2))
    assert one == other
    changed = ItemsConfig(train=BY_FUNCTION.train, test=BY_FUNCTION.test, seed=1)
    assert make_parts(changed, RoundsConfig(), words).ids() != one


def test_nothing_left_is_an_error():
    short = ItemsConfig(train={"multiple": 0}, test={"multiple": 0}, max_prompt_tokens=1)
    with pytest.raises(ValueError, match="data.max_prompt_tokens"):
        make_parts(short, RoundsConfig(), words)
