"""Dates, clock times, weekdays and conversions between units.

An instance is of one kind: `date` (a day of a year that is no leap year, then days added), `clock` (a time, then
durations added), `weekday` (a weekday, then days added) or `convert` (amounts in two units, each into the smaller).
"""

from __future__ import annotations

import datetime
import re
from random import Random
from typing import Any

from openzaya.problems.family import Family, Parameters, Steps, at, by_kind, listed, templates
from openzaya.problems.stepper import Stepper

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# (larger unit, smaller unit, how many make one, largest amount of the larger)
_UNITS = (
    ("hours", "minutes", 60, 9),
    ("minutes", "seconds", 60, 9),
    ("days", "hours", 24, 9),
    ("weeks", "days", 7, 12),
    ("feet", "inches", 12, 9),
    ("years", "months", 12, 9),
    ("m", "cm", 100, 9),
    ("pounds", "ounces", 16, 9),
)
_KINDS = ("date", "clock", "weekday", "convert")
_AMOUNTS = (1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
_LARGEST_DAYS = (15, 30, 30, 45, 45, 45, 50, 50, 60, 60)
_COMMON_YEAR = 2023
_DATE = re.compile(r"(?:(\d+)(?:st|nd|rd|th)?(?: of)? )?([a-z]+)(?: (\d+)(?:st|nd|rd|th)?)?")


def _dates_instance(random: Random, difficulty: int) -> dict[str, Any]:
    kind = random.choice(_KINDS)
    amounts = at(_AMOUNTS, difficulty)
    if kind == "clock":
        durations = [[random.randint(0, 1 + difficulty // 2), random.randint(1, 59)] for _ in range(amounts)]
        return {"kind": kind, "start": [random.randrange(24), random.randrange(60)], "added": durations}
    if kind == "convert":
        larger, smaller, factor, largest = random.choice(_UNITS)
        pairs = [[random.randint(1, largest), random.randrange(factor)] for _ in range(amounts)]
        return {"kind": kind, "units": [larger, smaller], "factor": factor, "amounts": pairs}
    added = [random.randint(1, at(_LARGEST_DAYS, difficulty)) for _ in range(amounts)]
    if kind == "weekday":
        return {"kind": kind, "start": random.choice(WEEKDAYS), "added": added}
    month = random.randrange(12)
    return {"kind": kind, "start": [MONTHS[month], random.randint(1, _MONTH_LENGTHS[month])], "added": added}


def _date_fields(parameters: Parameters) -> dict[str, str]:
    month, day = parameters["start"]
    return {"start": f"{month} {day}", "sum": _sum(parameters), "then": _then(parameters)}


def _weekday_fields(parameters: Parameters) -> dict[str, str]:
    return {"start": parameters["start"], "sum": _sum(parameters), "then": _then(parameters)}


def _sum(parameters: Parameters) -> str:
    return " + ".join(str(days) for days in parameters["added"])


def _then(parameters: Parameters) -> str:
    return ", then ".join(
        f"{days} more days" if place else f"{days} days" for place, days in enumerate(parameters["added"])
    )


def _clock_fields(parameters: Parameters) -> dict[str, str]:
    hours, minutes = parameters["start"]
    return {
        "start": _clock(hours, minutes),
        "added": ", then ".join(f"{h} h {m} min" for h, m in parameters["added"]),
        "sum": " + ".join(_clock(h, m) for h, m in parameters["added"]),
    }


def _clock(hours: int, minutes: int) -> str:
    return f"{hours:02d}:{minutes:02d}"


def _convert_fields(parameters: Parameters) -> dict[str, str]:
    larger, smaller = parameters["units"]
    return {
        "amounts": ", ".join(f"{many} {larger} {few} {smaller}" for many, few in parameters["amounts"]),
        "smaller": smaller,
        "larger": larger,
        "pairs": ", ".join(f"{many} and {few}" for many, few in parameters["amounts"]),
        "factor": str(parameters["factor"]),
    }


def _dates_solve(parameters: Parameters) -> str:
    kind = parameters["kind"]
    if kind == "convert":
        return listed([many * parameters["factor"] + few for many, few in parameters["amounts"]])
    if kind == "clock":
        minutes = sum(60 * hours + minutes for hours, minutes in [parameters["start"], *parameters["added"]])
        return _clock(minutes // 60 % 24, minutes % 60)
    days = sum(parameters["added"])
    if kind == "weekday":
        return WEEKDAYS[(WEEKDAYS.index(parameters["start"]) + days) % 7]
    month, day = parameters["start"]
    date = datetime.date(_COMMON_YEAR, MONTHS.index(month) + 1, day)
    # Whole years of 365 days are left out, so that no leap year comes in.
    date += datetime.timedelta(days=days % 365)
    if date.year > _COMMON_YEAR:
        date = datetime.date(_COMMON_YEAR, 1, 1) + datetime.timedelta(days=(date - datetime.date(date.year, 1, 1)).days)
    return f"{MONTHS[date.month - 1]} {date.day}"


def _dates_work(parameters: Parameters, step: Stepper) -> Steps:
    workers = {"date": _date_work, "clock": _clock_work, "weekday": _weekday_work, "convert": _convert_work}
    return workers[parameters["kind"]](parameters, step)


def _date_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, (name, day) = [], parameters["start"]
    month = MONTHS.index(name)
    for days in parameters["added"]:
        total = step.value(day + days, low=1)
        parts = [f"{MONTHS[month]} {day} + {days} = {MONTHS[month]} {total}"]
        while total > _MONTH_LENGTHS[month]:
            left = step.value(total - _MONTH_LENGTHS[month], low=1)
            following = (month + 1) % 12
            parts.append(f"{MONTHS[month]} {total} - {_MONTH_LENGTHS[month]} = {MONTHS[following]} {left}")
            month, total = following, left
        day = total
        lines.append(", ".join(parts))
    return lines, f"{MONTHS[month]} {day}"


def _clock_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, (hours, minutes) = [], parameters["start"]
    for more_hours, more_minutes in parameters["added"]:
        total = step.value(minutes + more_minutes, low=0)
        carry, left = divmod(total, 60)
        new_hours = step.value(hours + more_hours + carry, low=0)
        shown = new_hours % 24
        lines.append(
            f"{minutes} + {more_minutes} = {total} = {carry} * 60 + {left}, "
            f"{hours} + {more_hours} + {carry} = {new_hours} -> {_clock(shown, left)}"
        )
        hours, minutes = shown, left
    return lines, _clock(hours, minutes)


def _weekday_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, day = [], parameters["start"]
    for days in parameters["added"]:
        weeks, left = step.divide(days, 7)
        later = step.choose(WEEKDAYS[(WEEKDAYS.index(day) + left) % 7], WEEKDAYS)
        lines.append(f"{days} = {weeks} * 7 + {left}, {day} + {left} = {later}")
        day = later
    return lines, day


def _convert_work(parameters: Parameters, step: Stepper) -> Steps:
    lines, results, factor = [], [], parameters["factor"]
    for many, few in parameters["amounts"]:
        product = step.value(many * factor, low=0)
        total = step.value(product + few, low=0)
        lines.append(f"{many} * {factor} = {product}, {product} + {few} = {total}")
        results.append(total)
    return lines, listed(results)


def _dates_accepts(parameters: Parameters, answer: str) -> bool:
    """A date in either order, with or without an ordinal ending; other kinds have one form."""
    if parameters["kind"] != "date":
        return False
    written = _DATE.fullmatch(answer.strip().casefold())
    if written is None or (written[1] is None) == (written[3] is None):
        return False
    return f"{written[2].title()} {int(written[1] or written[3])}" == _dates_solve(parameters)


_PHRASINGS = {
    "date": templates(
        _date_fields,
        "What date is {sum} days after {start}? It is not a leap year.",
        "Start at {start} of a common year and go on {then}. Which date is it?",
        "A parcel is sent on {start}. It travels {then} and arrives. On what date (February has 28 days)?",
        "Add {sum} days to {start}, in a year of 365 days.",
        "Today is {start}, no leap year. Give the date in {sum} days.",
    ),
    "clock": templates(
        _clock_fields,
        "It is {start}. What time is it after {added}?",
        "Add {sum} to {start} on a 24-hour clock.",
        "A train leaves at {start} and takes {added}. When does it arrive?",
        "Start at {start} and let this much time pass: {added}. Which time does a 24-hour clock show?",
        "{start} + {sum} = ? Answer as hours:minutes.",
    ),
    "weekday": templates(
        _weekday_fields,
        "What day of the week is {sum} days after {start}?",
        "Today is {start}. Which weekday is it {then} later?",
        "If it is {start} now, what weekday comes {sum} days from now?",
        "A task starts on a {start} and takes {then}. On which day of the week is it done?",
        "Count on from {start} by {sum} days and name the weekday.",
    ),
    "convert": templates(
        _convert_fields,
        "Convert to {smaller}: {amounts}.",
        "How many {smaller} are {amounts}?",
        "There are {factor} {smaller} to each of the {larger}. Express {amounts} in {smaller} only.",
        "Write in {smaller}: {amounts}. Give one number for each.",
        "Given as {larger} and {smaller}: {pairs}. What is each of them in {smaller}?",
    ),
}

DATES_UNITS = Family(
    name="dates_units",
    task="math",
    difficulty_means="1 to 8 amounts added or converted, days up to 15 at first and 60 at last",
    instance=_dates_instance,
    phrasings=by_kind(_PHRASINGS),
    solve=_dates_solve,
    work=_dates_work,
    accepts=_dates_accepts,
)
