"""Planned collectives beside compiled ones."""

from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import topology
from pangu_jax.planning.communication import step_collectives
from pangu_jax.planning.differences import collective_differences
from pangu_jax.planning.execution import Execution
from pangu_jax.planning.hlo import HloCollective, HloCollectives


def _compiled(*rows):
    return HloCollectives(
        operations=tuple(
            HloCollective(
                name=f"op.{i}", kind=kind, group_size=group, bytes=size, executions=times,
                conditional=conditional,
            )
            for i, (kind, group, size, times, conditional) in enumerate(rows)
        )
    )  # fmt: skip


def test_a_program_that_does_what_is_planned_has_no_difference():
    layout = Layout(data=2, pipe=2, tensor=2, microbatches=4)
    planned = step_collectives(
        preset("debug", num_layers=6), layout, topology("cpu_8"), 64, Execution()
    )
    same = _compiled(
        *(
            (c.kind, c.group, round(c.output_bytes / c.count), round(c.count), False)
            for c in planned
        )
    )
    found = collective_differences(planned, same)
    assert found and all(d.explained for d in found)
    assert {(d.kind, d.group) for d in found} == {(c.kind, c.group) for c in planned}
    for d in found:
        assert d.planned_count == d.compiled_count and d.conditional_count == 0


def test_missing_unplanned_and_conditional_ones_are_told_apart():
    found = collective_differences(
        [],
        _compiled(
            ("all-gather", 8, 1000, 3, False), ("all-gather", 8, 1000, 2, True),
            ("all-reduce", 4, 500, 2, True), ("all-reduce", 1, 10**9, 1, False),
        ),
    )  # fmt: skip
    gather, reduce = found
    assert (gather.kind, gather.compiled_bytes, gather.conditional_bytes) == (
        "all-gather", 5000, 2000,
    )  # fmt: skip
    assert not gather.explained  # 3,000 bytes are always sent and not planned
    assert reduce.explained and reduce.group == 4  # may never be
    planned = step_collectives(
        preset("debug", num_layers=6), Layout(data=8), topology("cpu_8"), 64, Execution()
    )
    missing = collective_differences(planned, _compiled())
    assert missing and not any(d.explained for d in missing)
