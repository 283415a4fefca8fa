"""Collectives of a compiled program, read from its HLO text, with loop trips multiplied out.

XLA's own cost analysis counts the body of a loop once; here every loop is walked as often as it
runs. Where its trip count cannot be told and it holds collectives, the body is counted once and the
loop is reported.

Read are the dialects of the CPU, GPU and TPU compilers: replica groups as lists, as iota tiles
(`[4,2]<=[8]`) and as axes of a mesh (`mesh['a'=4,'b'=2] {'b'}`); synchronous operations,
`-start` / `-done` pairs and `async-start` around a computation; trip counts as known_trip_count or
as the bound of the loop condition.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip

_BITS = {"pred": 8, "token": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<= ]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BRANCH = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HloCollective:
    """One collective instruction of a program.

    bytes: of its result on one device, once. executions: per run of the program. group_size:
    devices that take part together (of a permutation: the length of its longest chain or ring);
    None where the text does not say. conditional: inside a branch that may not be taken;
    executions then count it as if it always were.
    """

    name: str
    kind: str
    group_size: int | None
    bytes: int
    executions: int
    conditional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class HloCollectives:
    """All collectives of a program, and the loops around any whose trip count is unknown (counted
    once)."""

    operations: tuple[HloCollective, ...]
    unknown_loops: tuple[str, ...] = ()

    def totals(self) -> dict[tuple[str, int | None], tuple[int, int]]:
        """(kind, group size) -> (executions, result bytes of one device), largest first."""
        sums: dict[tuple[str, int | None], list[int]] = collections.defaultdict(lambda: [0, 0])
        for op in self.operations:
            entry = sums[op.kind, op.group_size]
            entry[0] += op.executions
            entry[1] += op.executions * op.bytes
        ordered = sorted(sums.items(), key=lambda item: -item[1][1])
        return {key: (count, size) for key, (count, size) in ordered}


@dataclasses.dataclass
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


def hlo_collectives(text: str) -> HloCollectives:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("the HLO text has no ENTRY computation; pass compiled.as_text()")
    devices = _devices(text)
    found: list[HloCollective] = []
    unknown: list[str] = []

    def walk(name: str, times: int, conditional: bool) -> None:
        for op in computations.get(name, ()):
            kind = _kind(op.opcode)
            if kind:
                found.append(
                    HloCollective(
                        name=op.name, kind=kind, group_size=_group_size(op.rest, devices),
                        bytes=_result_bytes(op), executions=times, conditional=conditional,
                    )
                )  # fmt: skip
            elif op.opcode == "while":
                trips, before = _trip_count(op, computations), len(found)
                body = re.search(r"\bbody=%?([\w.\-]+)", op.rest)
                if body:
                    walk(body.group(1), times * (1 if trips is None else trips), conditional)
                if trips is None and len(found) > before:
                    unknown.append(op.name)
            elif op.opcode == "conditional":
                for branch in _branches(op.rest):
                    walk(branch, times, True)
            elif op.opcode in ("call", "fusion", "async-start"):
                for called in _CALLED.findall(op.rest):
                    walk(called, times, conditional)

    walk(entry, 1, False)
    return HloCollectives(operations=tuple(found), unknown_loops=tuple(unknown))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] | None = None
    entry = None
    for line in text.splitlines():
        if line and not line[0].isspace():
            header = _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header.group(2), [])
                if header.group(1):
                    entry = header.group(2)
            else:
                current = None
            continue
        match = _INSTRUCTION.match(line)
        if match and current is not None:
            shape, rest = _split_shape(match.group(2))
            opcode = re.match(r"\s*([\w\-]+)\(", rest)
            if opcode:
                current.append(
                    _Instruction(match.group(1), shape, opcode.group(1), rest[opcode.end() :])
                )
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """A result shape, tuples and layouts included, and what follows it."""
    depth = 0
    for index, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == " " and depth == 0:
            return text[:index], text[index + 1 :]
    return text, ""


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start")
    return base if base in KINDS else None


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape such as 'bf16[8,128]{1,0}' or a tuple of such."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        bits = _BITS.get(dtype)
        if bits is None:
            width = re.search(r"\d+", dtype)
            bits = int(width.group()) if width else 0
        sizes = [int(d.replace("<=", "")) for d in dims.split(",") if d.strip()]
        total += -(-bits * math.prod(sizes) // 8)
    return total


def _result_bytes(op: _Instruction) -> int:
    """Bytes of the collective's output; a -start returns (operands, outputs, contexts ...)."""
    # all-reduce-start is the exception: it returns its outputs alone.
    if op.opcode.endswith("-start") and op.opcode != "all-reduce-start":
        elements = list(_elements(op.shape))
        if len(elements) > 1:
            return shape_bytes(elements[1])
    return shape_bytes(op.shape)


def _elements(shape: str) -> Iterator[str]:
    """Elements of a tuple shape, one level deep; comments such as /*index=5*/ are dropped."""
    shape = re.sub(r"/\*.*?\*/", "", shape).strip()
    if not shape.startswith("("):
        yield shape
        return
    depth, start = 0, 1
    for index, char in enumerate(shape):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if (char == "," and depth == 1) or (char == ")" and depth == 0):
            yield shape[start:index].strip()
            start = index + 1


def _devices(text: str) -> int | None:
    head = text[: text.find("\n")]
    counts = [int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)]
    return math.prod(counts) if counts else None


def _group_size(attributes: str, devices: int | None) -> int | None:
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        return _longest_component(re.findall(r"\{(\d+),(\d+)\}", pairs.group(1)))
    tiles = re.search(r"replica_groups=\[([\d,]+)\]<=", attributes)
    if tiles:
        return int(tiles.group(1).split(",")[-1])
    mesh = re.search(r"replica_groups=@?mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if mesh:
        return _mesh_group(mesh.group(1), mesh.group(2), devices)
    groups = re.search(r"replica_groups=\{\{([\d,\s]+)\}", attributes)
    if groups:
        return len(groups.group(1).split(","))
    return devices if "replica_groups={}" in attributes else None


def _mesh_group(mesh: str, axes: str, devices: int | None) -> int | None:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    size = 1
    # 'name' is a whole axis, 'name':(before)size a part of one.
    for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes):
        if not part and name not in sizes:
            return devices
        size *= int(part) if part else sizes[name]
    return size


def _longest_component(pairs: list[tuple[str, str]]) -> int:
    neighbours: dict[str, set[str]] = collections.defaultdict(set)
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    longest, seen = 0, set()
    for start in neighbours:
        if start in seen:
            continue
        todo, members = [start], {start}
        while todo:
            for other in neighbours[todo.pop()] - members:
                members.add(other)
                todo.append(other)
        seen |= members
        longest = max(longest, len(members))
    return longest


def _trip_count(op: _Instruction, computations: dict[str, list[_Instruction]]) -> int | None:
    known = re.search(r'"?known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)', op.rest)
    if known:
        return int(known.group(1))
    condition = re.search(r"\bcondition=%?([\w.\-]+)", op.rest)
    return _bound(condition.group(1), computations) if condition else None


def _bound(condition: str, computations: dict[str, list[_Instruction]]) -> int | None:
    """The only integer that a condition of the form `i < constant` compares with.

    Loops that JAX makes of scan and fori_loop count up from 0 by 1; nothing else is guessed.
    """
    constants: set[int] = set()
    directions: set[str] = set()
    todo, seen = [condition], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for op in computations.get(name, ()):
            if op.opcode == "constant" and re.match(r"[su](32|64)\[\]", op.shape):
                value = re.match(r"\s*(-?\d+)\)", op.rest)
                if value:
                    constants.add(int(value.group(1)))
            if op.opcode == "compare":
                directions |= set(re.findall(r"direction=(\w+)", op.rest))
            todo += _CALLED.findall(op.rest)
    if directions != {"LT"} or len(constants) != 1:
        return None
    return max(constants.pop(), 0)


def _branches(attributes: str) -> list[str]:
    listed = _BRANCHES.search(attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed.group(1).split(",")]
    return _BRANCH.findall(attributes)
