"""Random small models on random layouts equal one device in loss and every gradient.

Data, ZeRO, tensor, sequence, pipeline, context, and pairs and triples of them.
"""

import pytest
from hypothesis import HealthCheck, Phase, example, given, note, settings
from hypothesis import strategies as st

from pangu_jax.parallel.layout import Layout, check_layout
from tests.pangu_jax.parallel.one_device import (
    LENGTH,
    check_equals_one_device,
    small_model,
)

# Every example compiles two programs.
PHASES = [Phase.explicit, Phase.generate]  # shrinking would compile hundreds of programs
FEW = settings(
    max_examples=3, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck)
)
MANY = settings(max_examples=30, phases=PHASES, suppress_health_check=list(HealthCheck))


@st.composite
def layouts(draw):
    """One to three mesh axes of 2 (or one of 4), and the switches that go with them."""
    axes = draw(
        st.lists(
            st.sampled_from(["data", "pipe", "context", "tensor"]),
            min_size=1, max_size=3, unique=True,
        )
    )  # fmt: skip
    sizes = dict.fromkeys(axes, 2)
    if len(axes) < 3 and draw(st.booleans()):
        sizes[axes[0]] = 4
    sequence = draw(st.booleans())
    return Layout(
        **sizes,
        virtual_stages=draw(st.sampled_from([1, 2, 3])) if "pipe" in axes else 1,
        microbatches=draw(st.integers(1, 4)),
        microbatch_rows=draw(st.integers(1, 2)),
        zero=draw(st.sampled_from([0, 1, 2, 3])),
        sequence_parallel=sequence,
        overlap=sequence and "tensor" in axes and draw(st.booleans()),
        context_strategy=draw(st.sampled_from(["ring", "gather"])),
    )


@st.composite
def models(draw, layout):
    """Small models that the layout divides, as far as it must; the rest is left to chance."""
    kv_heads = layout.tensor * draw(st.sampled_from([1, 2]))
    fewest = max(layout.stages - layout.end_slots(), 1)
    return small_model(
        num_layers=draw(st.integers(fewest, max(fewest, 4))),
        hidden_dim=draw(st.sampled_from([12, 16])),
        mlp_dim=layout.tensor * draw(st.integers(3, 7)),
        num_heads=kv_heads * draw(st.sampled_from([1, 2])),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 6, 8])),
        vocab_size=draw(st.integers(31, 60)),
        loss_chunk=draw(st.sampled_from([0, 4, 8])),
        norm_scheme=draw(st.sampled_from(["pre_ln", "sandwich", "dssn"])),
        tie_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        remat=draw(st.sampled_from(["none", "products", "dots", "nothing"])),
    )


@st.composite
def cases(draw):
    layout = draw(layouts())
    return layout, draw(models(layout))


def _check(case, seed):
    layout, model = case
    note(f"{layout} {model}")
    check_layout(layout, model, seq_len=LENGTH)
    check_equals_one_device(model, layout, seed=seed, scale=1, z_loss=1e-4 * (seed % 2))


@FEW
@given(case=cases(), seed=st.integers(0, 99))
def test_a_few_random_cases(case, seed):
    _check(case, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(case=cases(), seed=st.integers(0, 99))
@example(
    case=(Layout(pipe=2, virtual_stages=3, tensor=2, microbatches=4), small_model(num_layers=5)),
    seed=1,
)
def test_many_random_cases(case, seed):
    _check(case, seed)
