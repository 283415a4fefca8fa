"""The configurations that ship: finding them, checking a name, printing the list.

A configuration file defines `VARIANTS`, a dict of variant name -> Variant, and
`get_config(variant)`; its docstring says what it reproduces.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import pathlib


@dataclasses.dataclass(frozen=True)
class Variant:
    """What one variant of a configuration does.

    time: wall time on 2 CPU cores unless it names a device; 'not measured' where it is so.
    expect: the result to expect, as measured.
    """

    what: str
    time: str
    expect: str


def files(root: pathlib.Path) -> list[pathlib.Path]:
    """Configuration files below root/configs, sorted; helper modules start with an underscore."""
    return sorted(
        path for path in (root / "configs").rglob("*.py") if not path.name.startswith("_")
    )


def load(path: pathlib.Path):
    """The configuration module at `path`."""
    if path.suffix != ".py":
        raise ValueError(f"--config={path} is no configuration: a Python file (.py) is needed.")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path} defines no get_config(variant), so it names no run.")
    return module


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.4)
    return f" Did you mean {close[0]!r}?" if close else ""


def check(root: pathlib.Path, argument: str) -> None:
    """Raises ValueError, with a suggestion, when FILE.py:VARIANT names no file or no variant."""
    filename, _, variant = argument.partition(":")
    path = pathlib.Path(filename)
    known = [str(p.relative_to(root)) for p in files(root)]
    if not path.exists() and not (root / path).exists():
        raise ValueError(
            f"configuration file {filename!r} does not exist.{_hint(filename, known)} "
            f"Known: {', '.join(known)} (see --list)"
        )
    path = path if path.exists() else root / path
    variants = getattr(load(path), "VARIANTS", None)
    if variants is not None and variant and variant not in variants:
        raise ValueError(
            f"{filename} has no variant {variant!r}.{_hint(variant, list(variants))} "
            f"Known: {', '.join(variants)}"
        )


def get(root: pathlib.Path, argument: str):
    """The ConfigDict that FILE.py:VARIANT stands for."""
    filename, _, variant = argument.partition(":")
    path = pathlib.Path(filename)
    module = load(path if path.exists() else root / path)
    return module.get_config(variant) if variant else module.get_config()


def print_catalogue(root: pathlib.Path) -> None:
    """A table of every configuration and variant on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for path in files(root):
        module = load(path)
        console.print(f"[bold]{path.relative_to(root)}[/bold]")
        console.print((module.__doc__ or "").strip().splitlines()[0])
        table = Table(show_lines=False)
        for column in ("variant", "what it does", "time, 2 cores", "expect"):
            table.add_column(column, overflow="fold")
        for name, variant in getattr(module, "VARIANTS", {}).items():
            table.add_row(name, variant.what, variant.time, variant.expect)
        console.print(table)
        console.print()
    console.print("Run one with: python launch.py --config=FILE:VARIANT", highlight=False)
