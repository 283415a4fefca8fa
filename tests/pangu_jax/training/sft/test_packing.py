"""Packing: nothing lost, limits kept, resumption exact, and the loss that of the examples alone."""

import collections

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from pangu_jax.training.quick_compile import quick_options
from pangu_jax.training.sft.batches import fixed_batches, train_batches
from pangu_jax.training.sft.builtin import built_in_chats, tiny_model
from pangu_jax.training.sft.config import SftConfig
from pangu_jax.training.sft.encode import Encoder, Example, Tokens
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.objective import make_loss
from pangu_jax.training.sft.packing import FirstFitRows, RowShape, fill_row, row_shape
from pangu_jax.training.sft.tuning import Tuning


def example(sizes, labels, weight=1.0, start=0):
    """Sequences of these sizes, this many tokens at the end of each learned; tokens all differ."""
    sequences = []
    for size, count in zip(sizes, labels, strict=True):
        learn = np.arange(size) >= size - count
        sequences.append(Tokens(np.arange(start, start + size, dtype=np.int32), learn))
        start += size
    return Example(tuple(sequences), weight)


@st.composite
def examples(draw, width=1):
    out, start = [], 1
    for _ in range(draw(st.integers(1, 25))):
        sizes = [draw(st.integers(2, 20 // width)) for _ in range(width)]
        labels = [draw(st.integers(1, size - 1)) for size in sizes]
        out.append(example(sizes, labels, start=start))
        start += sum(sizes)
    return out


@given(data=st.data(), width=st.integers(1, 2), seed=st.integers(0, 3))
def test_every_epoch_has_every_example_once_within_the_limits(data, width, seed):
    found = data.draw(examples(width))
    shape = row_shape(found, 24)
    plan = FirstFitRows(found, shape, seed=seed)
    at = 0
    orders = []
    for epoch in range(3):
        rows = [plan.row(at + i) for i in range(plan.rows_of_epoch(epoch))]
        at += len(rows)
        assert sorted(sum(rows, [])) == list(range(len(found)))
        for row in rows:
            assert sum(found[i].size for i in row) <= shape.tokens
            assert sum(found[i].labels for i in row) <= shape.labels
            assert 1 <= len(row) <= shape.groups
        orders.append(rows)
    assert FirstFitRows(found, shape, seed=seed).row(at - 1) == orders[-1][-1]


def test_order_depends_on_seed_and_epoch():
    found = [example([5], [2]) for _ in range(40)]
    shape = row_shape(found, 20)
    rows = {
        seed: [FirstFitRows(found, shape, seed=seed).row(i) for i in range(20)] for seed in (0, 1)
    }
    assert rows[0] != rows[1]
    assert rows[0][:10] != rows[0][10:]


def test_first_fit_takes_the_first_row_with_room():
    found = [example([size], [1]) for size in (6, 5, 4, 3, 2)]
    plan = FirstFitRows(found, RowShape(10, 10, 10), seed=0)
    assert plan.pack(np.arange(5)) == [[0, 2], [1, 3, 4]]
    few_labels = FirstFitRows(found, RowShape(10, 2, 10), seed=0)
    assert few_labels.pack(np.arange(5)) == [[0, 2], [1, 3], [4]]


@given(data=st.data(), width=st.integers(1, 2))
def test_a_row_holds_its_examples_exactly(data, width):
    found = data.draw(examples(width))
    shape = row_shape(found, 24)
    for members in FirstFitRows(found, shape, seed=0).pack(np.arange(len(found))):
        row = fill_row([found[i] for i in members], shape)
        sequences = [s for i in members for s in found[i].sequences]
        for number, sequence in enumerate(sequences, 1):
            here = row["segment_ids"] == number
            np.testing.assert_array_equal(row["tokens"][here], sequence.tokens)
            np.testing.assert_array_equal(row["positions"][here], np.arange(here.sum()))
            wanted = np.append(np.where(sequence.learn, sequence.tokens, -1)[1:], -1)
            np.testing.assert_array_equal(row["labels"][here], wanted)
        assert (row["labels"][row["segment_ids"] == 0] == -1).all()
        places = row["loss_positions"][row["loss_positions"] >= 0]
        np.testing.assert_array_equal(places, np.flatnonzero(row["labels"] >= 0))
        assert (row["segment_weights"] > 0).sum() == len(sequences)


@given(resume=st.integers(1, 12))
@settings(max_examples=5)
def test_a_restored_iterator_goes_on_exactly(resume):
    found = [example([size], [1], start=10 * size) for size in range(2, 12)]
    batches = train_batches(found, row_shape(found, 16), batch_rows=2, seed=4)
    whole = iter(batches)
    states, seen = [], []
    for _ in range(15):
        states.append(whole.get_state())
        seen.append(next(whole))
    again = iter(batches)
    again.set_state(states[resume])
    for want in seen[resume:]:
        got = next(again)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_processes_share_the_rows_of_a_batch():
    found = [example([size], [1], start=10 * size) for size in range(2, 12)]
    shape = row_shape(found, 16)
    whole = iter(train_batches(found, shape, batch_rows=4))
    parts = [
        iter(train_batches(found, shape, batch_rows=4, process_index=i, process_count=2))
        for i in range(2)
    ]
    for _ in range(5):
        want, got = next(whole), [next(part) for part in parts]
        np.testing.assert_array_equal(
            want["tokens"], np.concatenate([part["tokens"] for part in got])
        )
    with pytest.raises(FineTuneError, match="batch_rows=3.*multiple of the 2"):
        train_batches(found, shape, batch_rows=3, process_count=2)


def test_fixed_batches_hold_everything_once():
    found = [example([size], [size - 1], start=100 * size) for size in range(2, 12)]
    batches, rows = fixed_batches(found, row_shape(found, 16), batch_rows=4)
    assert sorted(sum(rows, [])) == list(range(10))
    counted = collections.Counter(
        np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in batches]).tolist()
    )
    assert counted == {t: 1 for e in found for t in e.sequences[0].tokens.tolist()}
    assert {len(b["tokens"]) for b in batches} == {4}


def test_packed_loss_is_the_sum_of_separate_losses():
    model = tiny_model()
    found = Encoder(model.tokenizer, max_tokens=128).encode(built_in_chats()[:9])
    found = [e._replace(weight=1.0 + i % 3) for i, e in enumerate(found)]
    shape = row_shape(found, 128)
    loss = make_loss(SftConfig(loss_chunk=10), Tuning(model.config, None))
    grad = jax.jit(
        jax.value_and_grad(lambda p, b: loss(p, b, None, {}).total),
        compiler_options=quick_options(jax.devices()[0]),
    )

    def sums(rows):
        rows = rows + [[] for _ in range(-len(rows) % 4)]
        parts = []
        for i in range(0, len(rows), 4):
            filled = [fill_row(row, shape) for row in rows[i : i + 4]]
            batch = {name: np.stack([row[name] for row in filled]) for name in filled[0]}
            parts.append(grad(model.params, batch))
        return jax.tree.map(lambda *x: sum(x), *parts)

    plan = FirstFitRows(found, shape, seed=0).pack(np.arange(len(found)))
    assert len(plan) < len(found)
    packed, grads = sums([[found[i] for i in row] for row in plan])
    alone, grads_alone = sums([[e] for e in found])
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        grads, grads_alone,
    )  # fmt: skip
