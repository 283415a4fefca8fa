"""Configurations: what arms change, what is refused and how that is said."""

import dataclasses

import pytest

from agents_jax.tools.toolace_r.config import ARMS, ItemsConfig, ToolAceRConfig, of_arm
from configs.agents import toolace_r
from pangu_jax.config import to_dict
from pangu_jax.config.resolve import ConfigError, resolve

DATA = ItemsConfig(train={"simple_python": 0}, test={"simple_python": 0})


@pytest.mark.parametrize("variant", toolace_r.VARIANTS)
def test_every_variant_is_a_configuration(variant):
    config = resolve(ToolAceRConfig, toolace_r.get_config(variant))
    assert config.refine.instruction == config.refinement_data.instruction
    # An item, two answers and the instruction fit a row of tuning and the engine's context.
    longest = config.data.max_prompt_tokens + 2 * config.answer_tokens
    assert longest < config.engine.context_length and longest <= config.sft.seq_len + 64


def test_ablations_differ_from_the_shipped_run_in_their_arm_alone():
    """So that they can be run in its work directory."""
    cpu = to_dict(resolve(ToolAceRConfig, toolace_r.get_config("cpu")))
    for variant in sorted(set(ARMS) - {"toolace_r"}):
        other = to_dict(resolve(ToolAceRConfig, toolace_r.get_config(variant)))
        assert list(other.pop("arms")) == ["toolace_r", variant]
        assert other == {k: v for k, v in cpu.items() if k != "arms"}


def test_an_arm_changes_what_its_name_says():
    config = ToolAceRConfig(data=DATA)
    assert of_arm(config, "toolace_r") == config
    changed = {
        arm: {
            f"{group}.{name}"
            for group, values in to_dict(of_arm(config, arm)).items()
            if isinstance(values, dict)
            for name, value in values.items()
            if value != to_dict(config)[group][name]
        }
        for arm in ARMS
    }
    assert changed == {
        "toolace_r": set(),
        "no_selection": {"selection.rule"},
        "random_selection": {"selection.rule"},
        "no_refinement_data": {"refinement_data.per_direct"},
        "no_kept_correct": {"refinement_data.keep_correct"},
        "continued": {"rounds.restart"},
        "sft": {"selection.rule", "refinement_data.per_direct"},
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": ()}, "at least one arm"),
        ({"arms": ("toolace",)}, "arm 'toolace' is unknown; allowed: toolace_r, "),
        ({"arms": ("sft", "toolace_r")}, "must come first"),
        ({"arms": ("random_selection",)}, "as many items as 'toolace_r'"),
        ({"answer_tokens": 0}, "answer_tokens=0"),
        ({"answer_tokens": 400}, "engine.context_length=1024"),
    ],
)
def test_settings_that_do_not_work_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        ToolAceRConfig(data=DATA, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": {}}, "train names no category"),
        ({"train": {"simple": 0}}, "category 'simple'; allowed: simple_python"),
        ({"train": {"live_relevance": 0}}, "without live_relevance"),
        ({"train": {"simple_python": -1}}, "train.simple_python=-1"),
        ({"test": {"multiple": 0}}, "test has also multiple"),
        ({"protocol": "live_to_nonlive"}, "trains on live_ categories"),
        ({"refusal_share": -0.1}, "refusal_share=-0.1"),
        ({"validation": 0}, "validation=0"),
    ],
)
def test_items_that_cannot_be_had_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(DATA, **changes)


def test_unknown_keys_and_variants_are_refused():
    values = to_dict(ToolAceRConfig(data=DATA)) | {"selecton": {}}
    with pytest.raises(ConfigError, match="selecton.*selection"):
        resolve(ToolAceRConfig, values)
    with pytest.raises(ValueError, match="unknown variant 'tpu'"):
        toolace_r.get_config("tpu")
