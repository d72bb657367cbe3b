"""The bundled sample: every reading rule by hand, and the committed files as the script makes them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samples import generate
from samples import korean_numbers as korean
from samples.sentences import SHARES, TEMPLATES
from samples.slots import SLOTS, UNITS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "samples" / generate.FOLDER
ROWS = {"train": 12_000, "valid": 500, "test": 500}


def rows_of(split: str) -> list[list[str]]:
    text = (FOLDER / f"{split}.tsv").read_bytes().decode()
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


@pytest.mark.parametrize(
    "number, reading",
    [
        (0, "영"),
        (1, "일"),
        (10, "십"),
        (11, "십일"),
        (16, "십육"),
        (20, "이십"),
        (100, "백"),
        (101, "백일"),
        (111, "백십일"),
        (502, "오백이"),
        (1000, "천"),
        (1100, "천백"),
        (1999, "천구백구십구"),
        (2024, "이천이십사"),
        (10_000, "만"),
        (11_000, "만 천"),
        (12_500, "만 이천오백"),
        (20_000, "이만"),
        (100_000, "십만"),
        (110_000, "십일만"),
        (1_000_000, "백만"),
        (10_000_000, "천만"),
        (100_000_000, "일억"),
        (100_010_000, "일억 일만"),
        (1_234_567_898, "십이억 삼천사백오십육만 칠천팔백구십팔"),
        (1_000_000_000_000, "일조"),
        (9_999_999_999_999_999, "구천구백구십구조 구천구백구십구억 구천구백구십구만 구천구백구십구"),
    ],
)
def test_sino_numerals(number: int, reading: str) -> None:
    assert korean.sino(number) == reading


@pytest.mark.parametrize(
    "number, alone, before_unit",
    [
        (1, "하나", "한"),
        (2, "둘", "두"),
        (3, "셋", "세"),
        (4, "넷", "네"),
        (5, "다섯", "다섯"),
        (10, "열", "열"),
        (11, "열하나", "열한"),
        (12, "열둘", "열두"),
        (20, "스물", "스무"),
        (21, "스물하나", "스물한"),
        (24, "스물넷", "스물네"),
        (30, "서른", "서른"),
        (33, "서른셋", "서른세"),
        (40, "마흔", "마흔"),
        (50, "쉰", "쉰"),
        (60, "예순", "예순"),
        (70, "일흔", "일흔"),
        (80, "여든", "여든"),
        (99, "아흔아홉", "아흔아홉"),
    ],
)
def test_native_numerals(number: int, alone: str, before_unit: str) -> None:
    assert korean.native(number) == alone
    assert korean.native_modifier(number) == before_unit


@pytest.mark.parametrize(
    "reading, expected",
    [
        (korean.clock(1), "한 시"),
        (korean.clock(2), "두 시"),
        (korean.clock(3, 3), "세 시 삼 분"),
        (korean.clock(11, 6), "열한 시 육 분"),
        (korean.clock(12), "열두 시"),
        (korean.clock(12, 59), "열두 시 오십구 분"),
        (korean.clock(0, 5), "영 시 오 분"),
        (korean.clock(13), "십삼 시"),
        (korean.clock(20, 20), "이십 시 이십 분"),
        (korean.clock(24), "이십사 시"),
        (korean.month(6), "유월"),
        (korean.month(10), "시월"),
        (korean.month(3), "삼월"),
        (korean.month(11), "십일월"),
        (korean.month(12), "십이월"),
        (korean.date(3, 5), "삼월 오 일"),
        (korean.date(6, 25), "유월 이십오 일"),
        (korean.date(10, 10), "시월 십 일"),
        (korean.date(6, 10, 2024), "이천이십사 년 유월 십 일"),
        (korean.native_count(20, "살"), "스무 살"),
        (korean.native_count(21, "살"), "스물한 살"),
        (korean.native_count(100, "명"), "백 명"),
        (korean.native_count(120, "명"), "백이십 명"),
        (korean.sino_count(20, "층"), "이십 층"),
        (korean.ordinal(1), "첫 번째"),
        (korean.ordinal(2), "두 번째"),
        (korean.ordinal(20), "스무 번째"),
        (korean.ordinal(21), "스물한 번째"),
        (korean.price(10_000), "만 원"),
        (korean.price(3_000), "삼천 원"),
        (korean.price(12_500), "만 이천오백 원"),
        (korean.price(1_100), "천백 원"),
        (korean.phone("010-1234-5678"), "공일공 일이삼사 오육칠팔"),
        (korean.phone("02-909-0007"), "공이 구공구 공공공칠"),
        (korean.percent("25"), "이십오 퍼센트"),
        (korean.percent("3.5"), "삼 점 오 퍼센트"),
        (korean.percent("0.05"), "영 점 영오 퍼센트"),
        (korean.decimal("1,234.50"), "천이백삼십사 점 오영"),
        (korean.digits("2024", zero="영"), "이영이사"),
    ],
)
def test_readings(reading: str, expected: str) -> None:
    assert reading == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: korean.sino(-1),
        lambda: korean.sino(10**16),
        lambda: korean.native(0),
        lambda: korean.native_modifier(100),
        lambda: korean.month(13),
        lambda: korean.month(0),
        lambda: korean.date(2, 30),
        lambda: korean.date(4, 31),
        lambda: korean.clock(25),
        lambda: korean.clock(3, 60),
        lambda: korean.digits("12a"),
        lambda: korean.digits(""),
        lambda: korean.digits("²"),
    ],
)
def test_what_has_no_reading_is_refused(call: Callable[[], str]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "unit, number, written, read",
    [
        ("시", 3, "3시", "세 시"),
        ("분", 3, "3분", "삼 분"),
        ("살", 20, "20살", "스무 살"),
        ("세", 20, "20세", "이십 세"),
        ("층", 20, "20층", "이십 층"),
        ("개", 5, "5개", "다섯 개"),
        ("개월", 6, "6개월", "육 개월"),
        ("월", 6, "6월", "유월"),
        ("일", 10, "10일", "십 일"),
        ("번", 3, "3번", "세 번"),
        ("번호", 3, "3번", "삼 번"),
        ("대", 4, "4대", "네 대"),
        ("호", 502, "502호", "오백이 호"),
        ("km", 10, "10km", "십 킬로미터"),
        ("kg", 7, "7kg", "칠 킬로그램"),
        ("인분", 2, "2인분", "이 인분"),
        ("도", 0, "0도", "영 도"),
    ],
)
def test_the_unit_decides_the_numeral(unit: str, number: int, written: str, read: str) -> None:
    assert UNITS[unit].pair(number) == (written, read)


def test_particles_and_context_are_kept_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "uniform", lambda _rng, _low, _high: 3)
    rng = random.Random(0)
    assert generate.fill("{#시}에 {#개}를 먹고 {#분}만 쉰다.", rng) == (
        "3시에 3개를 먹고 3분만 쉰다.",
        "세 시에 세 개를 먹고 삼 분만 쉰다.",
    )
    assert generate.fill("{#번호} 버스를 {#번} 탔다.", rng) == ("3번 버스를 3번 탔다.", "삼 번 버스를 세 번 탔다.")


def test_every_template_and_slot_is_used() -> None:
    assert set(SHARES) == set(TEMPLATES)
    assert sum(SHARES.values()) == 100
    rng = random.Random(0)
    for templates in TEMPLATES.values():
        for template in templates:
            for _ in range(50):
                written, read = generate.fill(template, rng)
                assert not any(mark in written + read for mark in "{}\t\n#")
                assert not any(character.isdigit() or character in "₩%:/℃" for character in read.removeprefix("문의:"))
    named = {name for templates in TEMPLATES.values() for text in templates for name in generate.SLOT.findall(text)}
    assert set(SLOTS) <= named


@pytest.mark.parametrize("split", ROWS)
def test_file_format(split: str) -> None:
    data = (FOLDER / f"{split}.tsv").read_bytes()
    assert data.endswith(b"\n")
    assert not data.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in data
    rows = rows_of(split)
    assert len(rows) == ROWS[split]
    for row in rows:
        assert len(row) == 2, row
        source, target = row
        assert source.strip() == source != ""
        assert target.strip() == target != ""
        assert len(source.encode()) <= 60
        assert len(target.encode()) <= 110
        assert not any(character.isdigit() for character in target), row


def test_no_source_stands_twice_within_or_between_splits() -> None:
    sources = [source for split in ROWS for source, _ in rows_of(split)]
    assert len(sources) == len(set(sources)) == 13_000


def test_sentences_without_a_number_are_copied_and_the_others_are_not() -> None:
    for split in ROWS:
        rows = rows_of(split)
        copied = [source for source, target in rows if source == target]
        assert 0.03 * len(rows) < len(copied) < 0.15 * len(rows)
        for source, target in rows:
            assert (source == target) == (not any(character.isdigit() for character in source))


def test_committed_files_are_what_the_script_makes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "samples" / "generate.py"), "-output", str(tmp_path)]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    for split in ROWS:
        made = (tmp_path / generate.FOLDER / f"{split}.tsv").read_bytes()
        assert made == (FOLDER / f"{split}.tsv").read_bytes(), f"{split}.tsv: run python samples/generate.py again"


def test_seed_and_row_counts_decide_the_bytes(tmp_path: Path) -> None:
    def made(name: str, *flags: str) -> list[bytes]:
        sizes = ["-train_rows", "30", "-valid_rows", "5", "--test_rows", "7"]
        assert generate.main(["-output", str(tmp_path / name), *sizes, *flags]) == 0
        return [(tmp_path / name / generate.FOLDER / f"{split}.tsv").read_bytes() for split in ROWS]

    first = made("a", "-seed", "5")
    assert [data.count(b"\n") for data in first] == [30, 5, 7]
    assert made("b", "-seed", "5") == first
    assert made("c", "-seed", "6") != first


def test_wrong_flags_end_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate.main(["-output", str(tmp_path), "-valid_rows", "0"])
    assert stopped.value.code == 2
    assert "-valid_rows must be at least 1, not 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_more_rows_than_the_templates_yield_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "TEMPLATES", dict.fromkeys(TEMPLATES, ("{학년}에 다닌다.",)))
    with pytest.raises(ValueError, match="the templates yield 6 different sentences, 20 were asked for"):
        generate.sentences(20, seed=1)
