"""What a circumference means at a gestational age: its centile, and the age that it suggests by itself.

Sources: Papageorghiou et al. 2014, "International standards for fetal growth based on serial ultrasound measurements:
the Fetal Growth Longitudinal Study of the INTERGROWTH-21st Project", Lancet 384:869-879, for the centile; Hadlock et
al. 1984, "Estimating fetal age: computer-assisted analysis of multiple fetal growth parameters", Radiology 152:497-501,
for the age. Neither is a diagnosis, and no text made here says that a fetus is small, large or ill.
"""

import math
import re
from dataclasses import dataclass

from acouslic.errors import AcouslicError

STANDARD = "INTERGROWTH-21st (Papageorghiou et al. 2014)"
AGE_SOURCE = "Hadlock et al. 1984"
STANDARD_DAYS = (14 * 7, 40 * 7)
"""The first and the last day of the standard: 14w0d and 40w0d."""
_MOST_WEEKS = 45
"""No pregnancy is older: a larger number is a slip of the pen."""
_HADLOCK_WEEKS = (14.0, 42.0)
"""Of the fetuses in the paper."""
_HADLOCK_ERRORS = ((18.0, 1.66), (24.0, 2.06), (30.0, 2.18), (36.0, 2.96), (math.inf, 3.04))
"""(up to this age in weeks, two standard deviations in weeks)."""
_WRITTEN = re.compile(r"(\d{1,2})(?:w(?:([0-6])d?)?|\+([0-6]))", re.ASCII)


@dataclass(frozen=True)
class GestationalAge:
    """Time since the last menstrual period, in completed days."""

    days: int

    @property
    def weeks(self) -> float:
        """As the equations have it."""
        return self.days / 7

    @property
    def has_standard(self) -> bool:
        """Whether the standard covers this age."""
        return STANDARD_DAYS[0] <= self.days <= STANDARD_DAYS[1]

    def __str__(self) -> str:
        return f"{self.days // 7}w{self.days % 7}d"


@dataclass(frozen=True)
class Growth:
    """A circumference beside the age that was given. None where there is no number to give; `notes` say why."""

    age: GestationalAge
    centile: float | None
    """0..100, of all healthy fetuses of that age, to 0.01: every page, table and line rounds this same number."""
    centile_interval: tuple[float, float] | None
    """The centiles at the ends of the circumference's interval."""
    z_score: float | None
    expected_mm: float | None
    """The median at that age."""
    age_by_circumference_weeks: float | None
    """To 0.01. Weak: healthy fetuses of one size differ by weeks, and a fetus that grows poorly looks young."""
    age_error_weeks: float | None
    """Two standard deviations of it."""
    notes: tuple[str, ...] = ()


def parse_age(text: str) -> GestationalAge:
    """An age from `28w3d`, `28w` or `28+3`. Raises AcouslicError for anything else, and from 45 weeks on."""
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise AcouslicError(f"{text!r} is no gestational age: write weeks and days, such as 28w3d")
    weeks, days = int(match[1]), int(match[2] or match[3] or 0)
    if weeks >= _MOST_WEEKS:
        raise AcouslicError(f"a gestational age of {text} is not possible: write completed weeks and days, below 45w0d")
    return GestationalAge(7 * weeks + days)


def standard_mm(weeks: float) -> tuple[float, float]:
    """Mean and standard deviation of the circumference, mm, at an age in weeks (14 to 40) by INTERGROWTH-21st."""
    mean = -81.3243 + 11.6772 * weeks - 0.000561865 * weeks**3
    deviation = -4.36302 + 0.121445 * weeks**2 - 0.0130256 * weeks**3 + 0.00282143 * weeks**3 * math.log(weeks)
    return mean, deviation


def age_by_circumference(circumference_mm: float) -> tuple[float, float] | None:
    """(age, two standard deviations) in weeks by Hadlock 1984; None where the age is outside the paper's 14 to 42."""
    centimetres = circumference_mm / 10
    weeks = 8.14 + 0.753 * centimetres + 0.0036 * centimetres**2
    if not _HADLOCK_WEEKS[0] <= weeks <= _HADLOCK_WEEKS[1]:
        return None
    return weeks, next(error for below, error in _HADLOCK_ERRORS if weeks < below)


def judge_growth(
    circumference_mm: float | None, interval_mm: tuple[float, float] | None, age: GestationalAge
) -> Growth:
    """What a circumference means at `age`; no numbers without one, and a note in place of the centile outside 14 to 40
    weeks."""
    if circumference_mm is None:
        return Growth(age, None, None, None, None, None, None)
    notes = []
    centile = interval = z_score = expected_mm = None
    if age.has_standard:
        expected_mm, deviation_mm = standard_mm(age.weeks)
        z_score = (circumference_mm - expected_mm) / deviation_mm
        centile = _centile(z_score)
        if interval_mm is not None:
            low, high = (_centile((value_mm - expected_mm) / deviation_mm) for value_mm in interval_mm)
            interval = (low, high)
    else:
        notes.append(f"no centile: {age} is outside the 14 to 40 weeks of the standard {STANDARD}")
    suggested = age_by_circumference(circumference_mm)
    if suggested is None:
        notes.append(f"the circumference suggests no age: it is outside the 14 to 42 weeks of {AGE_SOURCE}")
    weeks, error_weeks = (round(suggested[0], 2), suggested[1]) if suggested else (None, None)
    return Growth(age, centile, interval, z_score, expected_mm, weeks, error_weeks, tuple(notes))


def centile_words(centile: float) -> str:
    """A centile for people: whole, but never 0 or 100, which would claim to know the tails."""
    if centile < 1:
        return "below the 1st centile"
    if centile > 99:
        return "above the 99th centile"
    return f"{_ordinal(round(centile))} centile"


def weeks_words(weeks: float) -> str:
    """Weeks as weeks and days, to the nearest day."""
    return str(GestationalAge(round(weeks * 7)))


def _centile(z_score: float) -> float:
    return round(50 * math.erfc(-z_score / math.sqrt(2)), 2)


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
