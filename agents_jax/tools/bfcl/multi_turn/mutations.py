"""Random variants of gold trajectories, right and wrong, for tests of checkers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agents_jax.tools.bfcl import mutations as single_turn
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.calls import Call

Rng = np.random.Generator
Steps = list[list[Call]]
Turns = list[Steps]


def gold_turns(item: MultiTurnItem, *, one_step: bool = False) -> Turns:
    """The gold calls by turn and step: each call a step, or all of a turn in one."""
    if one_step:
        return [[list(calls)] if calls else [] for calls in item.ground_truth]
    return [[[call] for call in calls] for calls in item.ground_truth]


def mutated_turns(
    item: MultiTurnItem, rng: Rng, others: Sequence[MultiTurnItem], *, max_changes: int = 2
) -> tuple[Turns, list[str]]:
    """Turns made from the gold answer, changed 1 to max_changes times, and the changes' names.

    others: items whose gold calls may come in. Some changes keep an answer right (reading once
    more, another order of calls that do not depend on one another), most make it wrong.
    """
    turns = gold_turns(item, one_step=bool(rng.integers(2)))
    names = []
    for _ in range(int(rng.integers(1, max_changes + 1))):
        name = str(rng.choice(list(TURN_CHANGES)))
        turns = TURN_CHANGES[name](item, turns, rng, others)
        names.append(name)
    return turns, names


def _at_a_turn(change: Callable[[MultiTurnItem, list[Call], Rng, Sequence], list[Call]]):
    """Applies a change of calls to one turn that has some; its calls become one step each."""

    def apply(item, turns, rng, others) -> Turns:
        places = [n for n, steps in enumerate(turns) if any(steps)]
        if not places:
            return turns
        at = int(rng.choice(places))
        calls = change(item, [c for step in turns[at] for c in step], rng, others)
        return [*turns[:at], [[c] for c in calls], *turns[at + 1 :]]

    return apply


def _drop_call(item, calls, rng, others):
    at = int(rng.integers(len(calls)))
    return calls[:at] + calls[at + 1 :]


def _reorder(item, calls, rng, others):
    return [calls[i] for i in rng.permutation(len(calls))]


def _repeat_call(item, calls, rng, others):
    at = int(rng.integers(len(calls)))
    return [*calls[: at + 1], *calls[at:]]


def _stop_early(item, calls, rng, others):
    return calls[: int(rng.integers(len(calls)))]


def _insert(calls: list[Call], call: Call | None, rng: Rng) -> list[Call]:
    if call is None:
        return calls
    at = int(rng.integers(len(calls) + 1))
    return [*calls[:at], call, *calls[at:]]


def _foreign_call(item, calls, rng, others):
    """A gold call of another item with a common environment; most change the state."""
    near = [o for o in others if set(o.involved_classes) & set(item.involved_classes)]
    if not near:
        return calls
    other = near[int(rng.integers(len(near)))]
    found = [c for turn in other.ground_truth for c in turn]
    return _insert(calls, found[int(rng.integers(len(found)))] if found else None, rng)


_READING = ("get_", "ls", "pwd", "list_", "view_", "show", "display", "check")


def _read_only_call(item, calls, rng, others):
    """A call that needs no argument and by its name only reads."""
    names = [
        f["name"]
        for f in item.raw_functions
        if not f["parameters"].get("required")
        and f["name"].startswith(
            ("get_", "ls", "pwd", "list_", "view_", "show", "display", "check")
        )
    ]
    return _insert(calls, Call(str(rng.choice(names)), {}) if names else None, rng)


def _unknown_call(item, calls, rng, others):
    names = ["not_there", "_load_scenario", "__class__", "ls.__class__", "TravelAPI.book_flight"]
    return _insert(calls, Call(str(rng.choice(names)), {}), rng)


def _nested_call(item, calls, rng, others):
    """A call among the arguments of another, or something that is read like one."""
    call = calls[int(rng.integers(len(calls)))]
    value = [{calls[0].name: calls[0].arguments}, {"k": {"m": 1}}, {}, {"k": {}}, [{}]]
    return _insert(calls, Call(call.name, {**call.arguments, "x": value[rng.integers(5)]}), rng)


def _change_arguments(item, calls, rng, others):
    """One of the changes of single calls: arguments dropped, renamed, swapped, of other values."""
    name = str(rng.choice([n for n in single_turn.CHANGES if "argument" in n or "val" in n
                           or n in ("retype", "respell")]))  # fmt: skip
    return single_turn.CHANGES[name](item.opening(), calls, rng)


def _later(item, turns, rng, others):
    """The calls of a turn, moved into the next."""
    if len(turns) < 2:
        return turns
    at = int(rng.integers(len(turns) - 1))
    return [*turns[:at], [], turns[at] + turns[at + 1], *turns[at + 2 :]]


def _earlier(item, turns, rng, others):
    """The calls of a turn, made in the one before."""
    if len(turns) < 2:
        return turns
    at = int(rng.integers(1, len(turns)))
    return [*turns[: at - 1], turns[at - 1] + turns[at], [], *turns[at + 1 :]]


def _cut_off(item, turns, rng, others):
    return turns[: int(rng.integers(max(1, len(turns))))]


def _act_too_soon(item, turns, rng, others):
    """Calls in a turn in which none is due."""
    empty = [n for n, steps in enumerate(turns) if not steps]
    if not empty:
        return turns
    at = int(rng.choice(empty))
    return [*turns[:at], [_foreign_call(item, [], rng, others)], *turns[at + 1 :]]


TURN_CHANGES: dict[str, Callable[..., Turns]] = {
    "act_too_soon": _act_too_soon,
    "change_arguments": _at_a_turn(_change_arguments),
    "cut_off": _cut_off,
    "drop_call": _at_a_turn(_drop_call),
    "earlier": _earlier,
    "foreign_call": _at_a_turn(_foreign_call),
    "later": _later,
    "nested_call": _at_a_turn(_nested_call),
    "read_only_call": _at_a_turn(_read_only_call),
    "reorder": _at_a_turn(_reorder),
    "repeat_call": _at_a_turn(_repeat_call),
    "stop_early": _at_a_turn(_stop_early),
    "unknown_call": _at_a_turn(_unknown_call),
}
