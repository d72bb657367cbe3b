"""How Korean numbers are read aloud: Sino-Korean and native numerals, dates, times, counts, prices, phone numbers.

The rules are those of standard Korean grammar and orthography:

- Spacing. Numbers are spaced at every power of 만 (Hangul Orthography, article 44: `십이억 삼천사백오십육만`); a unit
  noun stands apart from its number (article 43: `열한 시 육 분`). Month names are single words (`유월`).
- Native numerals take their modifier form before a unit: 하나 -> 한, 둘 -> 두, 셋 -> 세, 넷 -> 네, 스물 -> 스무
  (Standard Language Rules, article 17, keeps 서/너 and 석/넉 for 돈, 말, 냥, 되 and the like; none is used here).
- 일 is not said before 십, 백, 천, nor before a leading 만 (`만 원`, but `십일만`, `이만`, `일억`, `일억 일만`).
- Hours from 1 to 12 are native, 0 and 13 to 24 Sino-Korean (`열두 시`, `십오 시`, `영 시`); minutes are Sino-Korean.
- June is 유월 and October 시월.
- Zero is 공 in digit strings (phone numbers) and 영 everywhere else (`영 점 오`).
"""

from __future__ import annotations

SINO_DIGITS = ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")
SINO_PLACES = ("", "십", "백", "천")
SINO_MYRIADS = ("", "만", "억", "조")
SINO_LIMIT = 10**16

NATIVE_ONES = ("", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉")
NATIVE_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
NATIVE_MODIFIERS = {"하나": "한", "둘": "두", "셋": "세", "넷": "네"}
NATIVE_LIMIT = 100

IRREGULAR_MONTHS = {6: "유월", 10: "시월"}
DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def sino(number: int) -> str:
    """The Sino-Korean numeral of 0 up to below 10 ** 16, spaced at the powers of 만: 12500 -> `만 이천오백`."""
    if not 0 <= number < SINO_LIMIT:
        raise ValueError(f"{number} has no reading here: give 0 to {SINO_LIMIT - 1}")
    if number == 0:
        return SINO_DIGITS[0]
    groups: list[str] = []
    for power in range(len(SINO_MYRIADS) - 1, -1, -1):
        value = number // 10_000**power % 10_000
        if not value:
            continue
        drops_one = value == 1 and power == 1 and not groups
        groups.append(("" if drops_one else _sino_below_myriad(value)) + SINO_MYRIADS[power])
    return " ".join(groups)


def _sino_below_myriad(number: int) -> str:
    text = ""
    for place in range(3, -1, -1):
        digit = number // 10**place % 10
        if digit:
            text += ("" if digit == 1 and place else SINO_DIGITS[digit]) + SINO_PLACES[place]
    return text


def native(number: int) -> str:
    """The native numeral that stands alone, from 1 to 99: 21 -> `스물하나`."""
    if not 1 <= number < NATIVE_LIMIT:
        raise ValueError(f"{number} has no native numeral: give 1 to {NATIVE_LIMIT - 1}")
    return NATIVE_TENS[number // 10] + NATIVE_ONES[number % 10]


def native_modifier(number: int) -> str:
    """The native numeral before a unit, from 1 to 99: 20 -> `스무`, 21 -> `스물한`, 33 -> `서른세`."""
    if number == 20:
        return "스무"
    standing = native(number)
    ones = NATIVE_ONES[number % 10]
    return standing.removesuffix(ones) + NATIVE_MODIFIERS.get(ones, ones) if ones else standing


def native_count(number: int, unit: str) -> str:
    """A count with a unit that takes native numerals (명, 개, 살): Sino-Korean from 100 on, as people say it."""
    return f"{native_modifier(number) if number < NATIVE_LIMIT else sino(number)} {unit}"


def sino_count(number: int, unit: str) -> str:
    """A count with a unit that takes Sino-Korean numerals (층, 호, 분, 원)."""
    return f"{sino(number)} {unit}"


def ordinal(number: int) -> str:
    """The native ordinal: 1 -> `첫 번째`, 3 -> `세 번째`."""
    return "첫 번째" if number == 1 else native_count(number, "번째")


def digits(text: str, zero: str = "공") -> str:
    """Digit by digit, without spaces: `010` -> `공일공`."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} holds more than the digits 0 to 9")
    return "".join(zero if digit == "0" else SINO_DIGITS[int(digit)] for digit in text)


def decimal(text: str) -> str:
    """A written number with or without a decimal point and thousands commas: `3.05` -> `삼 점 영오`."""
    whole, point, fraction = text.replace(",", "").partition(".")
    if not point:
        return sino(int(whole))
    return f"{sino(int(whole))} 점 {digits(fraction, zero=SINO_DIGITS[0])}"


def percent(text: str) -> str:
    """A written percentage without its sign: `3.5` -> `삼 점 오 퍼센트`."""
    return f"{decimal(text)} 퍼센트"


def price(won: int) -> str:
    """An amount of money in won: 12500 -> `만 이천오백 원`."""
    return sino_count(won, "원")


def phone(text: str) -> str:
    """A phone number, its parts joined by hyphens: `010-1234-5678` -> `공일공 일이삼사 오육칠팔`."""
    return " ".join(digits(part) for part in text.split("-"))


def month(number: int) -> str:
    """The name of a month: 6 -> `유월`, 10 -> `시월`, 3 -> `삼월`."""
    if not 1 <= number <= 12:
        raise ValueError(f"there is no month {number}")
    return IRREGULAR_MONTHS.get(number, f"{sino(number)}월")


def date(month_number: int, day: int, year: int | None = None) -> str:
    """A date: (6, 10, 2024) -> `이천이십사 년 유월 십 일`."""
    name = month(month_number)
    if not 1 <= day <= DAYS_IN_MONTH[month_number - 1]:
        raise ValueError(f"month {month_number} has no day {day}")
    month_and_day = f"{name} {sino_count(day, '일')}"
    return month_and_day if year is None else f"{sino_count(year, '년')} {month_and_day}"


def clock(hour: int, minute: int = 0) -> str:
    """A time of day: (11, 6) -> `열한 시 육 분`; minute 0 is not said; hours 0 and 13 to 24 are Sino-Korean."""
    if not (0 <= hour <= 24 and 0 <= minute < 60):
        raise ValueError(f"there is no time {hour}:{minute:02}")
    hours = native_count(hour, "시") if 1 <= hour <= 12 else sino_count(hour, "시")
    return f"{hours} {sino_count(minute, '분')}" if minute else hours
