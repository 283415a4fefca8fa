"""Random variants of gold calls, right and wrong, for tests of checkers and for negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agents_jax.tools.bfcl.data import Item
from agents_jax.tools.bfcl.gold import gold_calls
from agents_jax.tools.calls import Call

Rng = np.random.Generator


def mutated_calls(item: Item, rng: Rng, *, max_changes: int = 2) -> tuple[list[Call], list[str]]:
    """Calls drawn from the gold answer, changed up to max_changes times, and the changes' names.

    Some changes keep an answer right (another allowed value, another order, case and punctuation
    of strings), most make it wrong; which of the two is for a checker to say.
    """
    calls = gold_calls(item, rng)
    names = []
    for _ in range(int(rng.integers(max_changes + 1))):
        name = str(rng.choice(list(CHANGES)))
        calls = CHANGES[name](item, calls, rng)
        names.append(name)
    return calls, names


def _pick(values, rng: Rng) -> Any:
    return values[int(rng.integers(len(values)))]


def _on_one_call(change: Callable[[Item, Call, Rng], Call]):
    def apply(item: Item, calls: list[Call], rng: Rng) -> list[Call]:
        if not calls:
            return calls
        index = int(rng.integers(len(calls)))
        return [change(item, c, rng) if i == index else c for i, c in enumerate(calls)]

    return apply


def _on_one_value(change: Callable[[Any, Rng], Any]):
    def apply(item: Item, call: Call, rng: Rng) -> Call:
        if not call.arguments:
            return call
        name = _pick(list(call.arguments), rng)
        return Call(call.name, call.arguments | {name: change(call.arguments[name], rng)})

    return _on_one_call(apply)


def _rename_function(item: Item, call: Call, rng: Rng) -> Call:
    name = call.name
    others = [n for n in item.offered_names if n != name]
    spelled = [name + "_", name.replace(".", "_"), name.upper(), name.split(".")[-1], "f"]
    return Call(str(_pick(others + spelled, rng)), call.arguments)


def _drop_argument(item: Item, call: Call, rng: Rng) -> Call:
    if not call.arguments:
        return call
    dropped = _pick(list(call.arguments), rng)
    return Call(call.name, {k: v for k, v in call.arguments.items() if k != dropped})


def _rename_argument(item: Item, call: Call, rng: Rng) -> Call:
    if not call.arguments:
        return call
    old = _pick(list(call.arguments), rng)
    new = _pick([f"{old}_1", old.upper(), "x", *_parameters(item, call)], rng)
    return Call(call.name, {new if k == old else k: v for k, v in call.arguments.items()})


def _add_argument(item: Item, call: Call, rng: Rng) -> Call:
    name = _pick(["extra", *_parameters(item, call)], rng)
    value = _pick([1, 0.5, "", "text", True, None, [], {}, [1], ["a"], {"a": 1}], rng)
    return Call(call.name, call.arguments | {name: value})


def _shuffle_arguments(item: Item, call: Call, rng: Rng) -> Call:
    names = list(call.arguments)
    return Call(
        call.name, {names[i]: call.arguments[names[i]] for i in rng.permutation(len(names))}
    )


def _swap_values(item: Item, call: Call, rng: Rng) -> Call:
    names = list(call.arguments)
    if len(names) < 2:
        return call
    a, b = (names[i] for i in rng.permutation(len(names))[:2])
    values = call.arguments
    return Call(call.name, values | {a: values[b], b: values[a]})


def _retype(value: Any, rng: Rng) -> Any:
    """The same value, nearly, as another type."""
    if isinstance(value, (list, tuple)) and value:
        choices = [tuple(value), list(value), value[0], str(value), {"a": value[0]}]
        return _pick([*choices, [_retype(v, rng) for v in value], [value]], rng)
    if isinstance(value, dict):
        return _pick([str(value), list(value), [value], list(value.values())], rng)
    if isinstance(value, str):
        number = [float(value)] if value.isdecimal() else []
        return _pick([*number, [value], (value,), None, 1, {"a": value}, list(value)], rng)
    if isinstance(value, bool):
        return _pick([int(value), str(value), str(value).lower(), [value], None], rng)
    if isinstance(value, (int, float)):
        choices = [str(value), float(value), int(value), bool(value), [value], None]
        return _pick([*choices, (value, value)], rng)
    return _pick([0, "", "None", [], {}, False], rng)


def _revalue(value: Any, rng: Rng) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _pick([value + 1, -value, value * 10, 0], rng)
    if isinstance(value, float):
        return _pick([value + 0.5, -value, value / 100, round(value, 1), 0.0], rng)
    if isinstance(value, str):
        return _pick([value + " x", value[1:], value[::-1], "", value.split(" ")[0]], rng)
    if isinstance(value, (list, tuple)):
        items = list(value)
        if not items:
            return ["x"]
        at = int(rng.integers(len(items)))
        changed = [*items[:at], _revalue(items[at], rng), *items[at + 1 :]]
        choices = [changed, items[::-1], items[1:], items + items[:1], items[:at] + items[at + 1 :]]
        return type(value)(_pick([*choices, []], rng))
    if isinstance(value, dict):
        if not value:
            return {"key": "value"}
        key = _pick(list(value), rng)
        without = {k: v for k, v in value.items() if k != key}
        choices = [without, value | {"key": 1}, without | {f"{key}s": value[key]}]
        return _pick([*choices, value | {key: _revalue(value[key], rng)}, {}], rng)
    return value


def _respell(value: Any, rng: Rng) -> Any:
    """Strings in another case, with other blanks and punctuation."""
    if isinstance(value, str):
        spelled = [value.upper(), value.replace(" ", "_"), value.replace("-", "/"), f" {value}. "]
        return _pick([*spelled, value.replace('"', "'"), value.replace(",", ""), value + "^*"], rng)
    if isinstance(value, list):
        return [_respell(v, rng) for v in value]
    if isinstance(value, dict):
        return {k: _respell(v, rng) for k, v in value.items()}
    return value


def _drop_call(item: Item, calls: list[Call], rng: Rng) -> list[Call]:
    at = int(rng.integers(len(calls) + 1))
    return calls[:at] + calls[at + 1 :]


def _repeat_call(item: Item, calls: list[Call], rng: Rng) -> list[Call]:
    if not calls:
        return calls
    at = int(rng.integers(len(calls)))
    # Beside the original, or in the place of another call.
    return calls + [calls[at]] if rng.integers(2) else [*calls[1:], calls[at]]


def _shuffle_calls(item: Item, calls: list[Call], rng: Rng) -> list[Call]:
    return [calls[i] for i in rng.permutation(len(calls))]


def _parameters(item: Item, call: Call) -> list[str]:
    """Parameters of the called function, where it is one of those offered."""
    found = [f for f in item.raw_functions if f["name"] == call.name]
    return list(found[0]["parameters"]["properties"]) if found else []


CHANGES: dict[str, Callable[[Item, list[Call], Rng], list[Call]]] = {
    "rename_function": _on_one_call(_rename_function),
    "drop_argument": _on_one_call(_drop_argument),
    "rename_argument": _on_one_call(_rename_argument),
    "add_argument": _on_one_call(_add_argument),
    "shuffle_arguments": _on_one_call(_shuffle_arguments),
    "swap_values": _on_one_call(_swap_values),
    "retype": _on_one_value(_retype),
    "revalue": _on_one_value(_revalue),
    "respell": _on_one_value(_respell),
    "drop_call": _drop_call,
    "repeat_call": _repeat_call,
    "shuffle_calls": _shuffle_calls,
}
