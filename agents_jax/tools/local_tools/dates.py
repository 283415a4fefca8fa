"""Dates: today, weekdays, differences and sums, in the Gregorian calendar."""

from __future__ import annotations

import calendar
import datetime
import zoneinfo

from agents_jax.tools.definitions import ToolDefinition

_DATE = {"type": "string", "description": "A date as YYYY-MM-DD."}
_MOST = 1_000_000  # days; dates end with the year 9999 anyway


def _count(unit: str) -> dict:
    return {
        "type": "integer",
        "description": f"Number of {unit}, negative for earlier.",
        "minimum": -_MOST,
        "maximum": _MOST,
    }


CURRENT_DATE = ToolDefinition(
    "current_date",
    "Today's date, weekday and the time in a time zone.",
    {
        "type": "object",
        "properties": {
            "timezone": {
                "type": "string",
                "description": "A name such as Europe/Paris; UTC where none is given.",
            }
        },
    },
)
DAY_OF_WEEK = ToolDefinition(
    "day_of_week",
    "The weekday of a date.",
    {"type": "object", "properties": {"date": _DATE}, "required": ["date"]},
)
DAYS_BETWEEN = ToolDefinition(
    "days_between",
    "The number of days from one date to another; negative if the second is earlier.",
    {"type": "object", "properties": {"start": _DATE, "end": _DATE}, "required": ["start", "end"]},
)
ADD_TO_DATE = ToolDefinition(
    "add_to_date",
    "The date some years, months, weeks and days after (or before) a date. Years and months are "
    "added first; a day that a month does not have becomes its last one.",
    {
        "type": "object",
        "properties": {
            "date": _DATE,
            **{unit: _count(unit) for unit in ("years", "months", "weeks", "days")},
        },
        "required": ["date"],
    },
)


def current_date(timezone: str = "UTC", *, now: str | None = None) -> str:
    """'2026-11-26, Thursday, 10:15 (UTC)'.

    Args:
      timezone: a name of the IANA data base.
      now: an ISO time with its offset instead of the clock's, for runs that can be repeated.

    Raises:
      ValueError: no such time zone.
    """
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{timezone[:80]!r} is no time zone; give a name such as Europe/Paris or UTC."
        ) from None
    if now is None:
        time = datetime.datetime.now(zone)
    else:
        time = datetime.datetime.fromisoformat(now)
        if time.tzinfo is None:
            raise ValueError(f"now={now!r} has no offset; write it as 2026-01-31T12:00+00:00.")
        time = time.astimezone(zone)
    return f"{time:%Y-%m-%d}, {_weekday(time.date())}, {time:%H:%M} ({timezone})"


def day_of_week(date: str) -> str:
    """The weekday's name.

    Raises:
      ValueError: not a date.
    """
    return _weekday(_read(date))


def days_between(start: str, end: str) -> str:
    """Days from start to end, as text.

    Raises:
      ValueError: not a date.
    """
    return str((_read(end) - _read(start)).days)


def add_to_date(
    date: str, *, years: int = 0, months: int = 0, weeks: int = 0, days: int = 0
) -> str:
    """The date that much later, as 'YYYY-MM-DD, weekday'.

    Raises:
      ValueError: not a date, or a sum outside of the years 1 to 9999.
    """
    begin = _read(date)
    month = (begin.year + years) * 12 + begin.month - 1 + months
    year, month = divmod(month, 12)
    try:
        if not datetime.MINYEAR <= year <= datetime.MAXYEAR:
            raise OverflowError
        day = min(begin.day, calendar.monthrange(year, month + 1)[1])
        moved = datetime.date(year, month + 1, day) + datetime.timedelta(days=7 * weeks + days)
    except OverflowError:
        raise ValueError(f"the sum is outside of the years 1 to 9999 (from {date}).") from None
    return f"{moved.isoformat()}, {_weekday(moved)}"


def _read(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is no date; write it as YYYY-MM-DD, such as 2026-01-31."
        ) from None


def _weekday(date: datetime.date) -> str:
    return calendar.day_name[date.weekday()]
