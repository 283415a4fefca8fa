"""README and docs: every command names configurations, keys, modes and flags that exist; links."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shlex

import pytest

import launch
from pangu_jax.config import catalogue
from pangu_jax.config.flags import check_overrides

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_PLACEHOLDER = re.compile(r"\b[A-Z_]{3,}\b|\.\.\.")


def commands(page: pathlib.Path) -> list[list[str]]:
    """Arguments of every `python FILE.py ...` in a page, in code blocks, tables and sentences."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^(?:```[a-z]*\n(.*?)^```|((?:    .*\n)+))", text, re.M | re.S)
    lines = [line for block in blocks for line in "".join(block).splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        match = re.search(r"python[\d.]* ((?:launch|benchmarks/\w+)\.py\b.*)", line)
        if match:
            found.append(shlex.split(match.group(1), comments=True))
    return found


def source(script: pathlib.Path) -> str:
    """Text of a script and of those beside it that it imports, which define flags too."""
    text = script.read_text(encoding="utf-8")
    imported = re.findall(r"^(?:from|import) (?:benchmarks(?:\.| import ))?(\w+)", text, re.M)
    beside = [script.parent / f"{name}.py" for name in imported]
    return "".join([text, *(file.read_text(encoding="utf-8") for file in beside if file.is_file())])


ALL = [(page.name, arguments) for page in PAGES for arguments in commands(page)]


def given_flags(arguments: list[str]) -> dict[str, str]:
    """{'mode': 'train', 'config': ...} of `--mode=train --config=...`."""
    return dict(a.removeprefix("--").partition("=")[::2] for a in arguments if a.startswith("--"))


# (page, work directory) -> the configuration that a command there trains in it.
CONFIGS = {
    (page, given["workdir"]): given["config"]
    for page, arguments in ALL
    if {"workdir", "config"} <= set(given := given_flags(arguments))
}


def test_commands_are_found():
    names = {arguments[0] for _, arguments in ALL}
    assert len(ALL) > 100 and "launch.py" in names and "benchmarks/rms_norm.py" in names


@pytest.mark.parametrize("page,arguments", ALL, ids=[f"{p}:{' '.join(a)[:60]}" for p, a in ALL])
def test_a_command_names_what_exists(page, arguments):
    script, *flags = arguments
    assert (ROOT / script).is_file()
    if script != "launch.py":
        known = source(ROOT / script)
        for flag in (f.partition("=")[0] for f in flags if f.startswith("--")):
            name = flag.removeprefix("--")
            spelled = [f'"{name}"', f'"--{name}"', f'"{name.removeprefix("no")}"']
            assert any(spelling in known for spelling in spelled), flag
        return
    given = given_flags(flags)
    assert given.get("mode", "train") in launch.MODES
    chosen = given.get("config") or launch.DEFAULT_CONFIG
    if "workdir" in given and "config" not in given and "mode" in given:
        # A run's own configuration counts, which another command of the page trained.
        chosen = CONFIGS.get((page, given["workdir"]), "")
    if not chosen or _PLACEHOLDER.search(chosen):
        return
    catalogue.check(ROOT, str(ROOT / chosen))
    overrides = [f for f in flags if not _PLACEHOLDER.search(f.partition("=")[0])]
    check_overrides(catalogue.get(ROOT, str(ROOT / chosen)), overrides)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_modules_that_are_run_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"python[\d.]* -m ((?:pangu|recsys|agents)_jax[\w.]*)", text):
        found = importlib.util.find_spec(name)
        assert found is not None, name
        package = found.submodule_search_locations is not None
        assert not package or importlib.util.find_spec(f"{name}.__main__"), name


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]
            assert anchor in slugs, link
