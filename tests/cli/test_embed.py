"""`embed.py` as a command: its vectors against the library's, restarts, processes, search, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ByT5Tokenizer

import embed
from models.loading import from_config
from task_utils import get_task
from tests.cli.command import Result, listing, run
from tests.cli.tiny import json_lines, write_tsv
from tests.small_configs import config_of
from tests.small_models import byte_tokenizer
from tests.trained_models import words

LONGEST = 30  # tokens of a passage
KILLED = """
import os, signal, sys
import prediction.workers.work as work
write, parts = work.write_part, []
def write_three(*given):
    if len(parts) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    parts.append(write(*given))
work.write_part = write_three
import embed
embed.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A T5 of random weights that says it was trained on `retrieval`, with -pooling decoder; and rows for it."""

    def make(folder: Path) -> None:
        from_config(config_of("t5"), 3).save_pretrained(folder)
        byte_tokenizer(folder)
        flags = {"pooling": "decoder", "max_target_length": LONGEST, "max_seq_length": 0}
        state = {"task": get_task("retrieval").to_dict(), "flags": flags}
        (folder / "training_state.json").write_text(json.dumps(state))
        passages = [" ".join(words(4, seed=row)) for row in range(50)]
        rows = [(f"{passage[:9]}", passage, f"p{row}") for row, passage in enumerate(passages)]
        write_tsv(folder / "rows.tsv", [*rows, ("", "", "none")], ("query", "passage", "name"))

    return once("vector_model", make)


def command(model: Path, output: Path, *more: str | Path | int) -> list[str]:
    flags = ("-model", model, "-data", model / "rows.tsv", "-save_output", output, "-gpus", 0, "-batch_size", 8)
    return [str(flag) for flag in (*flags, *more)]


def embed_ok(*given: Any) -> None:
    assert embed.main(command(*given)) == 0


def expected(model: Path, column: str, prefix: str, pooling: str, longest: int = 10**6) -> np.ndarray:
    """Row by row what `transformers` gives."""
    from transformers import T5ForConditionalGeneration

    network, tokenizer = T5ForConditionalGeneration.from_pretrained(model).eval(), ByT5Tokenizer()
    names, *rows = [line.split("\t") for line in (model / "rows.tsv").read_text().splitlines()]
    found = []
    for row in rows:
        ids = tokenizer(prefix + row[names.index(column)], return_tensors="pt").input_ids
        ids = torch.cat((ids[:, : min(ids.shape[1], longest) - 1], ids[:, -1:]), 1)
        with torch.no_grad():
            states = network.encoder(ids)[0]
            if pooling == "decoder":
                states = network.decoder(torch.zeros(1, 1, dtype=torch.int64), encoder_hidden_states=states)[0]
        found.append(states[0].mean(0).numpy())
    return np.stack(found)


def test_passages_and_queries_have_the_vectors_of_the_library(model: Path, tmp_path: Path) -> None:
    embed_ok(model, tmp_path / "p.npy", "-id_column", "name", "-normalize", "false")
    whole = expected(model, "passage", "passage: ", "decoder", LONGEST)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), whole, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "p.npy.ids.txt").read_text().split() == [*(f"p{row}" for row in range(50)), "none"]
    about = json.loads((tmp_path / "p.npy.json").read_text())
    assert (about["input_template"], about["max_seq_length"], about["rows"]) == (
        "passage: {{ source }}",
        LONGEST,
        51,
    )
    (tmp_path / "q.parquet.json").touch()  # of somebody else: what a Parquet file is of is in it
    embed_ok(model, tmp_path / "q.parquet", "-encode_as", "query", "-pooling", "mean", "-dtype", "float16")
    table = pq.read_table(tmp_path / "q.parquet")
    vectors = np.array(table["vector"].to_pylist())
    queries = expected(model, "query", "query: ", "mean")
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, queries, atol=1e-3)
    assert (str(table.schema.field("vector").type), table["id"].to_pylist()) == (
        "fixed_size_list<element: halffloat>[32]",
        [*range(51)],
    )
    embed_ok(model, tmp_path / "t.npy", "-task", "seq2seq", "-source_column", "query", "-pooling", "mean")
    plain = expected(model, "query", "", "mean")
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), plain, rtol=1e-4, atol=1e-5)


def test_killed_and_shared_among_processes_it_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """In processes of their own: how MKL adds is settled at its first sum."""
    names = "-id_column", "name"
    whole = run("python", "embed.py", *command(model, tmp_path / "one.npy", *names))
    assert whole.code == 0, whole.out + whole.err
    run("python", "-c", KILLED, *command(model, tmp_path / "two.npy", *names))
    assert {*listing(tmp_path)} >= {f"two.npy.parts/part-{part:06}.jsonl" for part in range(3)}
    assert not (tmp_path / "two.npy").exists()
    shared = run("python", "embed.py", *command(model, tmp_path / "two.npy", *names, "-cpu_processes", 2))
    assert shared.code == 0, shared.out + shared.err
    assert "24 of 51 rows were finished before" in shared.out
    endings = ("", ".json", ".ids.txt")
    for ending in endings:
        assert (tmp_path / f"two.npy{ending}").read_bytes() == (tmp_path / f"one.npy{ending}").read_bytes()
    assert {*listing(tmp_path)} == {f"{name}.npy{ending}" for name in ("one", "two") for ending in endings}


def test_queries_find_their_passages_in_the_corpus(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passages by their ids and by their texts, judged by qrels and by a column: the same ranks."""
    embed_ok(model, tmp_path / "p.npy", "-id_column", "name")
    vectors = np.load(tmp_path / "p.npy")
    embed_ok(model, tmp_path / "q.npy", "-encode_as", "query")
    scores = np.load(tmp_path / "q.npy") @ vectors.T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
    grades = "".join(f"{row}\t0\tp{row}\t1\n" for row in range(0, 50, 2))
    (tmp_path / "qrels").write_text(grades + "0 0 elsewhere 1\n")
    capsys.readouterr()
    report = tmp_path / "report.json"
    embed_ok(
        *(model, tmp_path / "f.jsonl", "-corpus", tmp_path / "p.npy", "-qrels", tmp_path / "qrels"),
        *("-save_report", report, "-top_k", 20),
    )
    told = capsys.readouterr().out
    assert "1 relevant passage is not in the corpus, and never found" in told
    assert "25 queries among 51 passages:" in told
    figures = json.loads(report.read_text())["metrics"]
    judged = ranks[:50:2]
    assert figures["mrr@10"] == pytest.approx(float(np.where(judged <= 10, 1 / judged, 0).mean()))
    hits = (judged <= 20) / np.where(np.arange(25) == 0, 2, 1)
    assert figures["recall@20"] == pytest.approx(hits.mean())
    first = json_lines(tmp_path / "f.jsonl")[0]
    assert (first["id"], first["relevant"], len(first["found"])) == ("0", {"p0": 1, "elsewhere": 1}, 20)
    assert first["found"][0]["score"] == pytest.approx(scores[0].max(), abs=1e-6)
    embed_ok(
        *(model, tmp_path / "f.trec", "-corpus", tmp_path / "p.npy", "-relevant_column", "name", "-id_column", "name"),
        *("-top_k", 2),
    )
    words_of = [line.split() for line in (tmp_path / "f.trec").read_text().splitlines()]
    assert [word[:2] + word[3:4] for word in words_of[:3]] == [["p0", "Q0", "1"], ["p0", "Q0", "2"], ["p1", "Q0", "1"]]
    assert f"success@1    {(ranks == 1).mean():.4f}" in capsys.readouterr().out


def test_passages_name_themselves_and_rows_of_one_query_are_taken_together(tmp_path: Path, model: Path) -> None:
    rows = write_tsv(tmp_path / "rows.tsv", [("ab", "a b"), ("ab", "a c"), ("c", "a c")], ("query", "passage"))
    flags = ("-model", model, "-data", rows, "-gpus", 0)
    embed.main([*map(str, flags), "-id_column", "passage", "-save_output", str(tmp_path / "p.parquet")])
    more = ("-corpus", tmp_path / "p.parquet", "-relevant_column", "passage", "-save_output", tmp_path / "f.jsonl")
    embed.main([*map(str, (*flags, *more))])
    found = json_lines(tmp_path / "f.jsonl")
    assert [(row["id"], row["relevant"]) for row in found] == [("0", {"a b": 1, "a c": 1}), ("2", {"a c": 1})]
    assert [{hit["id"] for hit in row["found"]} for row in found] == [{"a b", "a c"}] * 2


def test_mistakes_are_told_at_once(model: Path, tmp_path: Path) -> None:
    def errors(*flags: Any) -> list[str]:
        result: Result = run("python", "embed.py", *map(str, flags))
        assert result.code == 2, result.out
        return result.errors

    output = tmp_path / "v.txt"
    assert errors(
        *command(model, output, "-top_k", 5, "-qrels", "q.tsv", "-save_report", tmp_path / "r.html", "-id_column", 0)
    ) == [
        f"-top_k 5, -qrels q.tsv, -save_report {tmp_path / 'r.html'}: only with -corpus: it is about what is found"
        " there",
        "-qrels q.tsv: no such file",
        f"-save_output {output}: give a file that ends in .npy or .parquet, for vectors",
        "-id_column 0: columns are counted from 1; give a number from 1, or a name",
        f"-save_report {tmp_path / 'r.html'}: give a file that ends in .json",
    ]
    assert errors(*command(model, tmp_path / "v.npy", "-id_column", "missing")) == [
        "-id_column missing: row 0 (from 0) has none; columns there are: query, passage, name"
    ]
    assert errors(*command(model, tmp_path / "v.npy", "-task", "seq2seq", "-encode_as", "query")) == [
        "-encode_as query: task seq2seq has no queries and passages; leave it out, or give -task retrieval"
    ]
    embed_ok(model, tmp_path / "v.npy", "-pooling", "mean")
    assert errors(*command(model, tmp_path / "v.npy")) == [
        f"-save_output {tmp_path / 'v.npy'}: exists; -overwrite replaces it",
        f"-save_output: {tmp_path / 'v.npy.json'} exists; -overwrite replaces it",
    ]
    assert errors(*command(model, tmp_path / "f.jsonl", "-corpus", tmp_path / "v.npy"))[0].startswith(
        f"-pooling: the vectors of -corpus {tmp_path / 'v.npy'} were made with another one (mean, here decoder)"
    )
    for name, content in (("v.npy", (tmp_path / "v.npy").read_bytes()[:300]), ("other.npy", b"[1]")):
        (tmp_path / name).write_bytes(content)
        told = errors(*command(model, tmp_path / "f.jsonl", "-corpus", tmp_path / name))
        assert [line.partition(" (")[0] for line in told] == [f"-corpus {tmp_path / name}: cannot be read as vectors"]
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    told = errors(*command(model, tmp_path / "f.jsonl", "-corpus", tmp_path / "other.parquet"))
    assert told[0].endswith("(its schema does not say how they were made: embed.py has not written it)")
    assert {*listing(tmp_path)} == {"v.npy", "v.npy.json", "other.npy", "other.parquet"}
