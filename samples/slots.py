"""What stands in the number slots of a sentence: each slot gives a pair (as written, as read aloud)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samples import korean_numbers as korean

Item = TypeVar("Item")
Pair = tuple[str, str]


def uniform(rng: random.Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included.

    Only `Random.random` is used in the whole generator: its sequence is the one that Python promises to keep.
    """
    return low + int(rng.random() * (high - low + 1))


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """One of `items`, all equally likely."""
    return items[uniform(rng, 0, len(items) - 1)]


@dataclass(frozen=True)
class Unit:
    """A unit after a number: how it is written and how number and unit are read, for numbers from `low` to `high`."""

    written: str
    read: Callable[[int], str]
    low: int
    high: int

    def pair(self, number: int) -> Pair:
        """`number` with this unit: (as written, as read aloud)."""
        return f"{number}{self.written}", self.read(number)


def _native(unit: str, high: int, low: int = 1) -> Unit:
    return Unit(unit, lambda number: korean.native_count(number, unit), low, high)


def _sino(unit: str, high: int, low: int = 1, read_as: str = "") -> Unit:
    return Unit(unit, lambda number: korean.sino_count(number, read_as or unit), low, high)


UNITS: dict[str, Unit] = {
    "명": _native("명", 50),
    "개": _native("개", 50),
    "살": _native("살", 99),
    "시간": _native("시간", 48),
    "마리": _native("마리", 40),
    "잔": _native("잔", 40),
    "권": _native("권", 50),
    "장": _native("장", 50),
    "대": _native("대", 40),
    "병": _native("병", 40),
    "번": _native("번", 30),
    "번째": Unit("번째", korean.ordinal, 1, 30),
    "시": Unit("시", korean.clock, 1, 12),
    "달": Unit("월", korean.month, 1, 12),
    "월": Unit("월", korean.month, 1, 12),
    "해": _sino("년", 2029, low=1950),
    "층": _sino("층", 60),
    "호": _sino("호", 999, low=101),
    "호선": _sino("호선", 9),
    "번호": _sino("번", 99),
    "분": _sino("분", 59),
    "초": _sino("초", 59),
    "년": _sino("년", 60),
    "일": _sino("일", 31),
    "개월": _sino("개월", 36),
    "주": _sino("주", 20),
    "인분": _sino("인분", 20),
    "도": _sino("도", 40, low=0),
    "세": _sino("세", 99),
    "학년": _sino("학년", 6),
    "반": _sino("반", 15),
    "쪽": _sino("쪽", 150),
    "점": _sino("점", 100, low=0),
    "킬로미터": _sino("킬로미터", 200),
    "km": _sino("km", 200, read_as="킬로미터"),
    "kg": _sino("kg", 99, read_as="킬로그램"),
    "킬로그램": _sino("킬로그램", 99),
}
SMALL = 12  # half of the numbers are up to this, as in real text; the irregular readings are mostly here


def counted(rng: random.Random, unit: Unit) -> Pair:
    """A number with `unit`, small in half of the cases."""
    small = rng.random() < 0.5
    high = max(unit.low, min(unit.high, SMALL)) if small and unit.low <= SMALL else unit.high
    return unit.pair(uniform(rng, unit.low, high))


EVENING_HOURS = (0, *range(13, 24))  # written on the 24-hour clock, read Sino-Korean


def _clock(rng: random.Random) -> Pair:
    half_day = pick(rng, ("", "", "오전 ", "오후 "))
    hour = uniform(rng, 1, 12) if half_day or rng.random() < 0.7 else pick(rng, EVENING_HOURS)
    minute = 0 if rng.random() < 0.1 else uniform(rng, 1, 59)
    form = rng.random()
    if form < 0.55:
        padded = not half_day and rng.random() < 0.1
        return f"{half_day}{hour:{'02' if padded else ''}}:{minute:02}", half_day + korean.clock(hour, minute)
    if form < 0.7:
        return f"{half_day}{hour}시 반", f"{half_day}{korean.clock(hour)} 반"
    if form < 0.85 or minute == 0:
        return f"{half_day}{hour}시", half_day + korean.clock(hour)
    return f"{half_day}{hour}시 {minute}분", half_day + korean.clock(hour, minute)


def _date(rng: random.Random) -> Pair:
    month = uniform(rng, 1, 12)
    day = uniform(rng, 1, korean.DAYS_IN_MONTH[month - 1])
    day = 28 if (month, day) == (2, 29) else day  # the year may be a common one
    form = rng.random()
    if form < 0.5:
        return f"{month}월 {day}일", korean.date(month, day)
    if form < 0.8:
        return f"{month}/{day}", korean.date(month, day)
    year = uniform(rng, 2000, 2029)
    written = f"{year}년 {month}월 {day}일" if form < 0.95 else f"{year}-{month:02}-{day:02}"
    return written, korean.date(month, day, year)


def _price(rng: random.Random) -> Pair:
    form = rng.random()
    if form < 0.7:
        won = uniform(rng, 1, 99) * pick(rng, (100, 1000, 1000))
        written = pick(rng, (f"{won:,}원", f"{won:,}원", f"₩{won:,}"))
        return written, korean.price(won)
    thousands = uniform(rng, 1, 9)
    if form < 0.75:
        return f"{thousands}천 원", korean.price(thousands * 1000)
    myriads = uniform(rng, 1, 20) if form < 0.95 else uniform(rng, 21, 99)
    if form < 0.87:
        return f"{myriads}만 {thousands}천 원", korean.price(myriads * 10_000 + thousands * 1000)
    if form < 0.98:
        return f"{myriads}만 원", korean.price(myriads * 10_000)
    return "만 원", "만 원"


def _phone(rng: random.Random) -> Pair:
    last = f"{uniform(rng, 0, 9999):04}"
    if rng.random() < 0.65:
        written = f"010-{uniform(rng, 1000, 9999)}-{last}"
    else:
        written = f"{pick(rng, ('02', '031', '042', '051', '064'))}-{uniform(rng, 200, 999)}-{last}"
    return written, korean.phone(written)


def _decimal_text(rng: random.Random, high: int, decimals: float) -> str:
    whole = str(uniform(rng, 0, high))
    return f"{whole}.{uniform(rng, 1, 9)}" if rng.random() < decimals else whole


def _percent(rng: random.Random) -> Pair:
    number = _decimal_text(rng, 100, 0.0) if rng.random() < 0.6 else _decimal_text(rng, 99, 1.0)
    return number + pick(rng, ("%", "%", "%", "퍼센트")), korean.percent(number)


def _measure(high: int, decimals: float, written: Sequence[str], read_as: str) -> Callable[[random.Random], Pair]:
    def slot(rng: random.Random) -> Pair:
        number = _decimal_text(rng, high, decimals)
        return number + pick(rng, written), f"{korean.decimal(number)} {read_as}"

    return slot


def _decade(rng: random.Random) -> Pair:
    decade = uniform(rng, 1, 7) * 10
    return f"{decade}대", korean.sino_count(decade, "대")


def _score(rng: random.Random) -> Pair:
    ours = uniform(rng, 1, 15)
    theirs = uniform(rng, 0, ours - 1)
    return f"{ours} 대 {theirs}", f"{korean.sino(ours)} 대 {korean.sino(theirs)}"


SLOTS: dict[str, Callable[[random.Random], Pair]] = {
    "시각": _clock,
    "날짜": _date,
    "값": _price,
    "전화": _phone,
    "비율": _percent,
    "거리": _measure(100, 0.25, ("km", "km", "킬로미터"), "킬로미터"),
    "무게": _measure(90, 0.25, ("kg", "kg", "킬로그램"), "킬로그램"),
    "초": _measure(59, 0.3, ("초",), "초"),
    "도": _measure(40, 0.25, ("도", "℃"), "도"),
    "연령대": _decade,
    "점수": _score,
}
