"""Forty tasks for the local tools, ours: half need a tool, half do not.

The facts in the folder are invented, so that no model knows them. Half of the tasks without need of
a tool are worded near one (units, dates, files, sums), so that words alone do not tell them apart.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from agents_jax.tools.agent.tasks import Task, read_task
from agents_jax.tools.calls import Call

DOCUMENTS = {
    "handbook/holidays.md": (
        "# Holidays\n\nThe workshop is closed from 3 to 14 August and on the last Friday of every "
        "month. Requests for leave go to Ines Okafor.\n"
    ),
    "handbook/visitors.md": (
        "# Visitors\n\nVisitors sign in at the north gate with Mara Lindqvist and wear a green "
        "badge. Photographs are allowed everywhere but in the glaze room.\n"
    ),
    "handbook/safety.md": (
        "# Safety\n\nHearing protection is worn within 6 metres of the hammer. The assembly point "
        "is the walnut tree behind hall 3.\n"
    ),
    "inventory/lathe.txt": (
        "Lathe L-7\nSerial number: QX-4471\nBought: 2016\nSpindle bore: 38 mm\nLast serviced by "
        "the firm Halvorsen.\n"
    ),
    "inventory/kiln.txt": (
        "Kiln K-2\nSerial number: TR-0902\nTop temperature: 1315 degrees Celsius\nA firing of "
        "stoneware takes 11 hours.\n"
    ),
    "inventory/van.txt": "Van\nLicence plate: WS 581 K\nLoad: 920 kg\nParked in yard B.\n",
    "projects/heron.md": (
        "# Project Heron\n\nA tiled stove for the town library. Leader: Tomas Brandt. Budget: "
        "48250 euros. Delivery: 17 October.\n"
    ),
    "projects/otter.md": (
        "# Project Otter\n\nNinety door handles for the theatre. Leader: Priya Raman. Budget: "
        "12600 euros. The handles are cast in bronze.\n"
    ),
    "minutes/march.md": (
        "# Minutes, March\n\nThe gate will be painted in the colour RAL 6011. The next meeting is "
        "led by Yusuf Demir.\n"
    ),
    "recipes/glaze.txt": (
        "Glaze 12\nFeldspar 45 parts\nSilica 25 parts\nWhiting 18 parts\nKaolin 12 parts\nFire at "
        "1240 degrees Celsius.\n"
    ),
}
"""Files of the folder by their paths below it."""


def _sum(expression: str) -> Call:
    return Call("calculator", {"expression": expression})


def _convert(value: float, from_unit: str, to_unit: str) -> Call:
    return Call("convert_units", {"value": value, "from_unit": from_unit, "to_unit": to_unit})


# Name, query, answers, and a call whose result holds the answer.
_NEEDED: tuple[tuple[str, str, Any, Call], ...] = (
    ("sum-1", "What is 4837 * 219?", 1059303, _sum("4837 * 219")),
    ("sum-2", "Compute (1532 - 678) / 14.", 61, _sum("(1532 - 678) / 14")),
    ("sum-3", "What is 17 to the power of 5?", 1419857, _sum("17 ** 5")),
    ("sum-4", "What is the square root of 7569?", 87, _sum("sqrt(7569)")),
    (
        "sum-5", "A crate weighs 23.75 kg. What do 48 crates weigh, in kg?", 1140,
        _sum("23.75 * 48"),
    ),
    (
        "sum-6", "I buy 37 tiles at 4.85 euros each. How many euros do I pay?", 179.45,
        _sum("37 * 4.85"),
    ),
    (
        "date-1", "How many days are there from 2023-11-17 to 2024-05-02?", 167,
        Call("days_between", {"start": "2023-11-17", "end": "2024-05-02"}),
    ),
    (
        "date-2", "On which day of the week was 1999-08-11?", "Wednesday",
        Call("day_of_week", {"date": "1999-08-11"}),
    ),
    (
        "date-3", "Which date is 90 days after 2025-01-20? Answer as YYYY-MM-DD.", "2025-04-20",
        Call("add_to_date", {"date": "2025-01-20", "days": 90}),
    ),
    (
        "date-4", "How many days lie between 2020-02-10 and 2021-02-10?", 366,
        Call("days_between", {"start": "2020-02-10", "end": "2021-02-10"}),
    ),
    (
        "unit-1", "Convert 26.2 miles to kilometres.", [42.16, 42.2, 42.165],
        _convert(26.2, "mile", "km"),
    ),
    (
        "unit-2", "How many degrees Celsius are 350 degrees Fahrenheit?", [176.67, 176.7, 177],
        _convert(350, "F", "C"),
    ),
    (
        "unit-3", "How many pounds are 83 kilograms?", [182.98, 183],
        _convert(83, "kg", "lb"),
    ),
    (
        "unit-4", "How many litres are 7 US gallons?", [26.498, 26.5],
        _convert(7, "gallon", "litre"),
    ),
    (
        "file-1", "In which of my files does the serial number QX-4471 stand?", "lathe.txt",
        Call("search_files", {"text": "QX-4471"}),
    ),
    (
        "file-2", "Which of my files says who leads project Otter?", "otter.md",
        Call("search_files", {"text": "project otter"}),
    ),
    (
        "file-3", "Find the file with the licence plate of the van. What is its name?", "van.txt",
        Call("search_files", {"text": "licence plate"}),
    ),
    (
        "document-1", "According to our documents, whom do visitors sign in with?", "Lindqvist",
        Call("search_documents", {"query": "visitors sign in"}),
    ),
    (
        "document-2", "What is the budget of project Heron, in euros?", 48250,
        Call("search_documents", {"query": "budget of project Heron"}),
    ),
    (
        "document-3", "What do our minutes say: in which colour will the gate be painted?",
        "RAL 6011", Call("search_documents", {"query": "gate painted colour minutes"}),
    ),
)  # fmt: skip
_NOT_NEEDED: tuple[tuple[str, str, Any], ...] = (
    ("plain-1", "What is the capital of France?", "Paris"),
    ("plain-2", "Who wrote the play Romeo and Juliet?", "Shakespeare"),
    ("plain-3", "What is the opposite of the word 'hot'?", "cold"),
    ("plain-4", "Which colour do blue and yellow paint make together?", "green"),
    ("plain-5", "What is the past tense of the verb 'go'?", "went"),
    ("plain-6", "How do you say 'thank you' in French?", "merci"),
    ("plain-7", "What do bees make from nectar?", "honey"),
    ("plain-8", "Which is the largest planet of the solar system?", "Jupiter"),
    ("plain-9", "On which continent does Egypt lie?", "Africa"),
    ("plain-10", "What is frozen water called?", "ice"),
    ("near-1", "Which month comes after June?", "July"),
    ("near-2", "How many days does a week have?", [7, "seven"]),
    ("near-3", "What is the symbol of the unit kilogram?", "kg"),
    ("near-4", "Which temperature scale is used in daily life in the USA?", "Fahrenheit"),
    ("near-5", "What is two plus two?", [4, "four"]),
    ("near-6", "What is the result of an addition called?", "sum"),
    ("near-7", "What is the abbreviation of the unit kilometre?", "km"),
    ("near-8", "What does the P in the name of PDF files stand for?", "portable"),
    ("near-9", "On which day of December is Christmas Day?", [25, "25th", "twenty-fifth"]),
    ("near-10", "What is the profession of a person who runs a library?", "librarian"),
)  # fmt: skip


def builtin_tasks() -> tuple[Task, ...]:
    """The forty tasks, those that need a tool first."""
    return tuple(
        read_task({"id": name, "query": query, "needs_tool": need, "expected": {"answer": answer}})
        for need, rows in ((True, _NEEDED), (False, _NOT_NEEDED))
        for name, query, answer, *_ in rows
    )


def gold_calls() -> dict[str, Call]:
    """By task, one call whose result holds the answer; only tasks that need a tool."""
    return {name: call for name, _, _, call in _NEEDED}


def write_documents(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the files that the tasks ask about into a folder; the folder."""
    folder = pathlib.Path(folder)
    for name, text in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
