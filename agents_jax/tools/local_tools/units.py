"""Conversion of units by one table of exact factors."""

from __future__ import annotations

import math
from fractions import Fraction

from agents_jax.tools.definitions import ToolDefinition

_INCH = Fraction(254, 10_000)
_POUND = Fraction(45_359_237, 100_000_000)
_GALLON = 231 * (Fraction(254, 100) ** 3) / 1000  # litres; 231 cubic inches by definition
_IMPERIAL_GALLON = Fraction(454_609, 100_000)

# Quantity: unit: (names, factor to the quantity's base unit). Temperature has an offset too:
# kelvin = factor * (value + offset).
UNITS: dict[str, dict[str, tuple[tuple[str, ...], Fraction]]] = {
    "length": {
        "m": (("metre", "meter"), Fraction(1)),
        "km": (("kilometre", "kilometer"), Fraction(1000)),
        "cm": (("centimetre", "centimeter"), Fraction(1, 100)),
        "mm": (("millimetre", "millimeter"), Fraction(1, 1000)),
        "um": (("micrometre", "micrometer", "micron", "µm"), Fraction(1, 10**6)),
        "nm": (("nanometre", "nanometer"), Fraction(1, 10**9)),
        "in": (("inch", "inches"), _INCH),
        "ft": (("foot", "feet"), 12 * _INCH),
        "yd": (("yard",), 36 * _INCH),
        "mi": (("mile",), 63_360 * _INCH),
        "nmi": (("nautical mile",), Fraction(1852)),
    },
    "mass": {
        "kg": (("kilogram", "kilo"), Fraction(1)),
        "g": (("gram", "gramme"), Fraction(1, 1000)),
        "mg": (("milligram",), Fraction(1, 10**6)),
        "ug": (("microgram", "µg"), Fraction(1, 10**9)),
        "t": (("tonne", "metric ton"), Fraction(1000)),
        "lb": (("pound", "lbs"), _POUND),
        "oz": (("ounce",), _POUND / 16),
        "st": (("stone",), 14 * _POUND),
    },
    "temperature": {
        "K": (("kelvin",), Fraction(1)),
        "C": (("celsius", "°C", "degree celsius", "degrees celsius", "centigrade"), Fraction(1)),
        "F": (("fahrenheit", "°F", "degree fahrenheit", "degrees fahrenheit"), Fraction(5, 9)),
    },
    "time": {
        "s": (("second", "sec"), Fraction(1)),
        "ms": (("millisecond",), Fraction(1, 1000)),
        "min": (("minute",), Fraction(60)),
        "h": (("hour", "hr"), Fraction(3600)),
        "d": (("day",), Fraction(86_400)),
        "week": (("wk",), Fraction(604_800)),
        "year": (("yr", "julian year"), Fraction(31_557_600)),  # of 365.25 days
    },
    "volume": {
        "l": (("litre", "liter", "L"), Fraction(1)),
        "ml": (("millilitre", "milliliter", "mL"), Fraction(1, 1000)),
        "m3": (("cubic metre", "cubic meter", "m³"), Fraction(1000)),
        "gal": (("gallon", "us gallon"), _GALLON),
        "qt": (("quart", "us quart"), _GALLON / 4),
        "pt": (("pint", "us pint"), _GALLON / 8),
        "cup": (("us cup",), _GALLON / 16),
        "fl oz": (("fluid ounce", "us fluid ounce"), _GALLON / 128),
        "tbsp": (("tablespoon",), _GALLON / 256),
        "tsp": (("teaspoon",), _GALLON / 768),
        "imp gal": (("imperial gallon",), _IMPERIAL_GALLON),
        "imp pt": (("imperial pint",), _IMPERIAL_GALLON / 8),
    },
    "speed": {
        "m/s": (("metre per second", "meter per second", "metres per second",
                 "meters per second"), Fraction(1)),
        "km/h": (("kph", "kmh", "kilometre per hour", "kilometer per hour",
                  "kilometres per hour", "kilometers per hour"), Fraction(5, 18)),
        "mph": (("mi/h", "mile per hour", "miles per hour"), 63_360 * _INCH / 3600),
        "kn": (("knot", "kt"), Fraction(1852, 3600)),
        "ft/s": (("foot per second", "feet per second"), 12 * _INCH),
    },
    "data": {
        "bit": (("b",), Fraction(1)),
        "kbit": (("kilobit", "kb"), Fraction(10**3)),
        "Mbit": (("megabit", "Mb"), Fraction(10**6)),
        "Gbit": (("gigabit", "Gb"), Fraction(10**9)),
        "B": (("byte",), Fraction(8)),
        "kB": (("kilobyte", "KB"), Fraction(8 * 10**3)),
        "MB": (("megabyte",), Fraction(8 * 10**6)),
        "GB": (("gigabyte",), Fraction(8 * 10**9)),
        "TB": (("terabyte",), Fraction(8 * 10**12)),
        "KiB": (("kibibyte",), Fraction(8 * 2**10)),
        "MiB": (("mebibyte",), Fraction(8 * 2**20)),
        "GiB": (("gibibyte",), Fraction(8 * 2**30)),
        "TiB": (("tebibyte",), Fraction(8 * 2**40)),
    },
}  # fmt: skip
OFFSETS = {"C": Fraction(27_315, 100), "F": Fraction(45_967, 100)}

DEFINITION = ToolDefinition(
    "convert_units",
    "Converts a value between units of length, mass, temperature, time, volume, speed or data, "
    "such as km, mile, kg, lb, C, F, hour, litre, gallon, km/h, MB, GiB. Gallons, pints and cups "
    "are those of the US.",
    {
        "type": "object",
        "properties": {
            "value": {"type": "number", "description": "The value to convert."},
            "from_unit": {"type": "string", "description": "Its unit, such as mile."},
            "to_unit": {"type": "string", "description": "The unit wanted, such as km."},
        },
        "required": ["value", "from_unit", "to_unit"],
    },
)


class UnitError(ValueError):
    """A unit that is not known, or two of different quantities."""


def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """The value in the other unit, as 'number unit' with 10 significant digits.

    Raises:
      UnitError: an unknown unit, units of two quantities, a value that is not finite.
    """
    try:
        result = float(convert(value, from_unit, to_unit))
    except OverflowError:
        raise UnitError(f"the value or its equivalent in {to_unit!r} is too large.") from None
    return f"{result:.10g} {find(to_unit)[1]}"


def convert(value: float, from_unit: str, to_unit: str) -> Fraction:
    """The value in the other unit, exactly; raises as `convert_units`."""
    if not math.isfinite(value):
        raise UnitError(f"{value!r} is not a finite number.")
    (quantity, source), (other, target) = find(from_unit), find(to_unit)
    if quantity != other:
        raise UnitError(
            f"{from_unit!r} is a unit of {quantity} and {to_unit!r} of {other}; units of {quantity}"
            f" are {', '.join(UNITS[quantity])}."
        )
    base = UNITS[quantity][source][1] * (Fraction(value) + OFFSETS.get(source, 0))
    return base / UNITS[quantity][target][1] - OFFSETS.get(target, 0)


def find(name: str) -> tuple[str, str]:
    """(quantity, unit) of a symbol or name: as written, then without case, then singular.

    Raises:
      UnitError: none, with the units that there are.
    """
    written = name.strip()
    low = written.lower()
    for table, key in ((_EXACT, written), (_FOLDED, low), (_FOLDED, low.removesuffix("s"))):
        if key in table:
            return table[key]
    known = "; ".join(f"{quantity}: {', '.join(units)}" for quantity, units in UNITS.items())
    raise UnitError(f"{name[:40]!r} is no unit known here. {known}.")


def _tables() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    exact: dict[str, tuple[str, str]] = {}
    folded: dict[str, tuple[str, str]] = {}
    doubtful = set()
    for quantity, units in UNITS.items():
        for unit, (names, _) in units.items():
            for name in (unit, *names):
                exact[name] = quantity, unit
                if folded.setdefault(name.lower(), (quantity, unit)) != (quantity, unit):
                    doubtful.add(name.lower())
    # What differs by case alone is read only as it is written.
    return exact, {name: found for name, found in folded.items() if name not in doubtful}


_EXACT, _FOLDED = _tables()
