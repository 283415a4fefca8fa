"""The local tools: their results against independent ones, bounds, and no way out of a folder."""

from __future__ import annotations

import ast
import calendar
import datetime
import math
import operator
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools import Call
from agents_jax.tools.execution import Executor
from agents_jax.tools.local_tools import (
    calculator,
    dates,
    default_registry,
    documents,
    files,
    units,
)
from agents_jax.tools.local_tools.calculator import CalculationError, calculate, evaluate
from agents_jax.tools.local_tools.folders import FolderError, files_below, inside
from agents_jax.tools.local_tools.units import UnitError, convert, convert_units

# ---- calculator

_BINARY = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip


@st.composite
def _expressions(draw, depth=0):
    """(text, value): the value is built with the operators themselves, not read from the text."""
    if depth == 4 or draw(st.booleans()):
        number = draw(st.integers(0, 99) | st.floats(0, 99).map(lambda x: round(x, 3)))
        return str(number), number
    sign = draw(st.sampled_from([*_BINARY, "neg", "max"]))
    text, value = draw(_expressions(depth + 1))
    if sign == "neg":
        return f"-({text})", -value
    other_text, other = draw(_expressions(depth + 1))
    if sign == "max":
        return f"max({text}, {other_text})", max(value, other)
    if sign in ("/", "//", "%") and other == 0:
        sign = "+"
    return f"({text}) {sign} ({other_text})", _BINARY[sign](value, other)


@given(_expressions())
@settings(max_examples=200)
def test_arithmetic(expression):
    text, value = expression
    if len(text) <= calculator.MAX_CHARS:
        result = evaluate(text)
        assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("2 + 3 * 4", "14"),
        ("2 + 3^2", "11"),
        ("-2**2", "-4"),
        ("7 ÷ 2 × 4 − 1", "13"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("2**100", str(2**100)),
        ("sqrt(16) + log(8, 2) + round(2.567, 1)", "9.6"),
        ("sin(pi / 2)", "1"),
        ("factorial(20) // comb(5, 2)", str(math.factorial(20) // 10)),
        ("gcd(12, 18)", "6"),
    ],
)
def test_known_results(text, result):
    assert calculate(text) == result


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an expression"),
        ("2 +", "not an expression"),
        ("x + 1", "'x' is not known; allowed: pi, e, tau"),
        ("open('f')", "'open' is not known"),
        ("__import__('os').system('true')", "Call is no arithmetic"),
        ("(1).__class__", "Attribute is no arithmetic"),
        ("[1, 2]", "List is no arithmetic"),
        ("'a' * 10", "Constant is no arithmetic"),
        ("True + 1", "Constant is no arithmetic"),
        ("1 if 1 else 2", "IfExp is no arithmetic"),
        ("1 << 5", "BinOp is no arithmetic"),
        ("lambda: 1", "Lambda is no arithmetic"),
        ("max(1, key=abs)", "Call is no arithmetic"),
        ("max(*[1])", "no arithmetic"),
        ("9**9**9", "power is too large"),
        ("2**-99999", "power is too large"),
        ("(2**2000) * (2**2000) * (2**2000)", "4096 bits"),
        ("factorial(10**6)", "up to 500"),
        ("factorial(factorial(20))", "up to 500"),
        ("comb(10**9, 5 * 10**8)", "up to 500"),
        ("factorial(2.5)", "integer"),
        ("round(1.5, 10**9)", "up to 300 digits"),
        ("sqrt(1, 2)", "sqrt takes 1 arguments; 2 are given"),
        ("1 / 0", "division by zero"),
        ("sqrt(-1)", "domain"),
        ("(-8)**0.5", "not a finite real"),
        ("1e308 * 10", "not a finite real"),
        ("1e999", "not a finite real"),
        ("-" * 200 + "1", "more than 50 deep"),
        ("(" * 300 + "1" + ")" * 100, "not an expression"),
        ("1+" * 300 + "1", "500"),
        ("1\0", "not an expression"),
        ("\ud800", "not an expression"),
    ],
)
@pytest.mark.timeout(20)
def test_no_arithmetic_is_refused(text, reason):
    with pytest.raises(CalculationError, match=reason):
        calculate(text)


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["1", "9", "**", "(", ")", "+", "factorial", "e", "pi", ",", ".", "round", "%", "-", "^"]
), max_size=30).map("".join))  # fmt: skip
@settings(max_examples=300, deadline=5000)
def test_any_text_is_computed_or_refused(text):
    try:
        ast.literal_eval(calculate(text))  # a number
    except CalculationError as error:
        assert str(error)


# ---- dates

_dates = st.dates()


@given(_dates, _dates)
def test_days_between_and_back(start, end):
    days = int(dates.days_between(start.isoformat(), end.isoformat()))
    assert days == end.toordinal() - start.toordinal()
    assert dates.add_to_date(start.isoformat(), days=days).startswith(end.isoformat())
    assert dates.day_of_week(end.isoformat()) == f"{end:%A}"


@given(_dates, st.integers(-200, 200), st.integers(-3000, 3000))
def test_months_end_with_their_last_day(date, years, months):
    total = date.year * 12 + date.month - 1 + 12 * years + months
    year, month = total // 12, total % 12 + 1
    if not 1 <= year <= 9999:
        with pytest.raises(ValueError, match="outside of the years 1 to 9999"):
            dates.add_to_date(date.isoformat(), years=years, months=months)
        return
    day = min(date.day, calendar.monthrange(year, month)[1])
    want = datetime.date(year, month, day)
    found = dates.add_to_date(date.isoformat(), years=years, months=months)
    assert found == f"{want.isoformat()}, {want:%A}"


def test_the_present_can_be_fixed():
    now = "2026-01-31T23:30:00+00:00"
    assert dates.current_date(now=now) == "2026-01-31, Saturday, 23:30 (UTC)"
    assert dates.current_date("Asia/Tokyo", now=now) == "2026-02-01, Sunday, 08:30 (Asia/Tokyo)"
    before = datetime.datetime.now(datetime.UTC).date()
    shown = datetime.date.fromisoformat(dates.current_date()[:10])
    assert before <= shown <= datetime.datetime.now(datetime.UTC).date()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: dates.current_date("Mars/Base"), "'Mars/Base' is no time zone"),
        (lambda: dates.current_date("../../etc/passwd"), "is no time zone"),
        (lambda: dates.current_date(now="2026-01-31T12:00"), "has no offset"),
        (lambda: dates.day_of_week("31.01.2026"), "write it as YYYY-MM-DD"),
        (lambda: dates.day_of_week("2026-02-30"), "'2026-02-30' is no date"),
        (lambda: dates.add_to_date("9999-12-31", days=1), "outside of the years"),
        (lambda: dates.add_to_date("2026-01-01", days=-(10**6)), "outside of the years"),
    ],
)
def test_dates_that_are_none(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


# ---- units

_pairs = st.sampled_from([(a, b) for table in units.UNITS.values() for a in table for b in table])


@given(_pairs, st.floats(-1e12, 1e12))
def test_conversions_come_back_exactly(pair, value):
    there = convert(value, *pair)
    one, other = pair
    back = units.UNITS[units.find(one)[0]]
    # In exact fractions there is no rounding to allow for.
    again = (back[other][1] * (there + units.OFFSETS.get(other, 0))) / back[one][1]
    assert again - units.OFFSETS.get(one, 0) == convert(value, one, one)


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        (1, "mile", "km", "1.609344 km"),
        (6, "Feet", "cm", "182.88 cm"),
        (100, "C", "F", "212 F"),
        (-40, "fahrenheit", "celsius", "-40 C"),
        (0, "K", "°C", "-273.15 C"),
        (5, "Pounds", "kg", "2.26796185 kg"),
        (1, "gallon", "litres", "3.785411784 l"),
        (2, "cups", "ml", "473.176473 ml"),
        (1, "imperial gallon", "l", "4.54609 l"),
        (60, "mph", "km/h", "96.56064 km/h"),
        (1, "knot", "m/s", "0.5144444444 m/s"),
        (1.5, "hours", "min", "90 min"),
        (1, "week", "days", "7 d"),
        (1, "GB", "MiB", "953.6743164 MiB"),
        (1, "MB", "Mb", "8 Mbit"),
        (1, "year", "d", "365.25 d"),
    ],
)
def test_known_conversions(value, source, target, result):
    assert convert_units(value, source, target) == result


def test_every_unit_is_found_by_all_its_names():
    for quantity, table in units.UNITS.items():
        for unit, (names, _) in table.items():
            for name in (unit, *names):
                assert units.find(name) == (quantity, unit)


@pytest.mark.parametrize(
    ("value", "source", "target", "reason"),
    [
        (1, "parsec", "km", "'parsec' is no unit known here. length: m, km"),
        (1, "kg", "km", "'kg' is a unit of mass and 'km' of length; units of mass are kg, g"),
        (1, "mb", "kB", "'mb' is no unit"),  # megabytes or megabits
        (math.inf, "m", "km", "not a finite number"),
        (1e308, "km", "nm", "too large"),
        (10**400, "km", "m", "too large"),
    ],
)
def test_units_that_do_not_fit(value, source, target, reason):
    with pytest.raises(UnitError, match=reason):
        convert_units(value, source, target)


# ---- files


@pytest.fixture
def folder(tmp_path):
    """A folder with a secret beside it and links that lead out."""
    (tmp_path / "secret.txt").write_text("the secret word")
    root = tmp_path / "root"
    (root / "notes" / "deep").mkdir(parents=True)
    (root / "notes" / "trip.md").write_text("# Rome\n\nWe saw the Forum.\nHotel: 120 euros\n")
    (root / "notes" / "deep" / "list.txt").write_text("milk\nBread\n")
    (root / "data.bin").write_bytes(b"\0\1word")
    (root / ".hidden").write_text("word")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("word")
    try:
        (root / "link.txt").symlink_to(tmp_path / "secret.txt")
        (root / "out").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    return root


def test_files_are_found_by_name_and_content(folder):
    root = str(folder)
    assert files.find_files("", root=root).splitlines() == [
        "data.bin (6 bytes)",
        "notes/trip.md (43 bytes)",
        "notes/deep/list.txt (11 bytes)",
    ]
    assert files.find_files("*.MD", root=root) == "notes/trip.md (43 bytes)"
    assert files.find_files("deep/*", root=root) == "No file found."
    assert files.find_files("notes/deep/*", root=root) == "notes/deep/list.txt (11 bytes)"
    assert files.search_files("bread", root=root) == "notes/deep/list.txt:2: Bread"
    assert files.search_files("bread", "*.md", root=root) == "No line found."
    assert files.search_files("word", root=root) == "No line found."


def test_reading_shows_which_lines(folder):
    root = str(folder)
    assert files.read_file("notes/deep/list.txt", root=root) == "milk\nBread"
    assert files.read_file("./notes//trip.md", 3, 1, root=root) == (
        "We saw the Forum.\n[lines 3 to 3 of 4]"
    )
    with pytest.raises(FolderError, match="is no text in UTF-8"):
        files.read_file("data.bin", root=root)


def test_many_results_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 80 + "y" * 500 + "needle" + "y" * 500)
    found = files.search_files("x", root=str(tmp_path)).splitlines()
    assert len(found) == files.MAX_FOUND + 1 and found[-1] == "[30 more lines not shown]"
    (line,) = files.search_files("needle", root=str(tmp_path)).splitlines()
    assert "needle" in line and len(line) < 300 and line.endswith("...")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "notes/../../secret.txt", "..", "/etc/passwd", "~/x", "\\etc", "C:\\x", "",
        ".", "link.txt", "out/secret.txt", "out", ".hidden", ".git/config", "notes", "absent.txt",
        "a\0b", "x" * 5000, "notes/trip.md/x", "..\\secret.txt",
    ],
)  # fmt: skip
def test_no_way_out_of_the_folder(folder, path):
    with pytest.raises(FolderError):
        files.read_file(path, root=str(folder))


_steps = st.sampled_from(
    ["..", ".", "notes", "deep", "out", "link.txt", "root", "secret.txt", "", "trip.md", "~", "/"]
)


@given(st.lists(_steps, max_size=6).map("/".join))
@settings(max_examples=200, deadline=None)
def test_whatever_is_opened_lies_inside(tmp_path_factory, path):
    base = tmp_path_factory.getbasetemp() / "inside"
    root = base / "root"
    if not root.exists():
        (root / "notes" / "deep").mkdir(parents=True)
        (base / "secret.txt").write_text("secret")
        (root / "notes" / "trip.md").write_text("fine")
        (root / "out").symlink_to(base, target_is_directory=True)
        (root / "link.txt").symlink_to(base / "secret.txt")
    try:
        found = inside(root.resolve(), path)
    except FolderError:
        return
    assert found.resolve() == root.resolve() / "notes" / "trip.md"


def test_walks_do_not_follow_links(folder):
    names = {path.name for path in files_below(folder)}
    assert names == {"trip.md", "list.txt", "data.bin"}


# ---- documents


def test_passages_begin_at_headings_and_keep_their_lines():
    text = "intro\n\n# One\n\nfirst\nlines\n\n## Two\nsecond\n"
    passages = documents.split_passages("a.md", text)
    assert [(p.line, p.heading, p.text) for p in passages] == [
        (1, "", "intro"),
        (5, "One", "first\nlines"),
        (9, "Two", "second"),
    ]


@given(st.lists(st.sampled_from(["", "# H", "word", "x" * 900, "y " * 3000, "#tag"]), max_size=30))
def test_no_words_are_lost_between_passages(lines):
    passages = documents.split_passages("a.md", "\n".join(lines))
    kept = "".join("".join(p.text for p in passages).split())
    words = "".join("".join(line.split()) for line in lines if not line.startswith("# "))
    assert kept == words
    assert all(len(p.text) <= 4 * documents.PASSAGE_CHARS + len(lines) for p in passages)
    assert [p.line for p in passages] == sorted(p.line for p in passages)


def test_the_best_passage_comes_first_and_changes_are_seen(folder):
    (folder / "cats.md").write_text("# Cats\n\nCats sleep most of the day.\n")
    (folder / "dogs.txt").write_text("Dogs run after cars. A dog barks.\n")
    root = str(folder)
    found = documents.search_documents("Why does my dog bark?", 1, root=root)
    assert found.startswith("[dogs.txt:1]") and "barks" in found
    assert documents.search_documents("sleeping cat", 1, root=root).startswith("[cats.md:3] Cats\n")
    assert (
        documents.search_documents("zebra", root=root) == "No passage shares a word with the query."
    )
    assert "secret" not in documents.search_documents("secret word", root=root)
    (folder / "zebra.md").write_text("The zebra has stripes.")
    os.utime(folder / "zebra.md", (time.time() + 5, time.time() + 5))
    assert documents.search_documents("zebra", root=root).startswith("[zebra.md:1]")


def test_an_empty_folder_has_no_passages(tmp_path):
    assert documents.search_documents("x", root=str(tmp_path)).startswith("No passage")
    with pytest.raises(FolderError, match="There is no folder"):
        default_registry(tmp_path / "absent")


# ---- all of them


def test_the_registry_runs_in_the_worker(folder):
    registry = default_registry(folder, folder, now="2026-01-31T12:00:00+00:00")
    assert list(registry) == [
        "calculator", "current_date", "day_of_week", "days_between", "add_to_date",
        "convert_units", "find_files", "search_files", "read_file", "search_documents",
    ]  # fmt: skip
    assert len(default_registry()) == 6
    calls = {
        ("calculator", "expression", "6 * 7"): "42",
        ("day_of_week", "date", "2000-01-01"): "Saturday",
        ("current_date", "timezone", "UTC"): "2026-01-31, Saturday, 12:00 (UTC)",
        ("find_files", "pattern", "trip"): "notes/trip.md (43 bytes)",
        ("search_documents", "query", "forum"): (
            "[notes/trip.md:3] Rome\nWe saw the Forum.\nHotel: 120 euros"
        ),
    }
    with Executor(registry) as executor:
        for (name, key, value), text in calls.items():
            assert executor.run(Call(name, {key: value})).text == text
        seen = executor.run(Call("read_file", {"path": "../secret.txt"}))
        assert seen.error_kind == "raised" and "is not offered" in seen.text
        # What is bound is not the model's to set.
        seen = executor.run(Call("read_file", {"path": "secret.txt", "root": str(folder.parent)}))
        assert seen.error_kind == "bad_arguments" and "root: is unknown" in seen.text
        seen = executor.run(Call("calculator", {"expression": "9**9**9"}))
        assert seen.text == "CalculationError: the power is too large."
        seen = executor.run(Call("add_to_date", {"date": "2026-01-31", "months": 1.5}))
        assert seen.error_kind == "bad_arguments"
