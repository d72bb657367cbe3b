"""Makes the vectors of texts and writes them, or finds the passages of a corpus that are nearest to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from config.flags.retrieval.embed import EmbedConfig
from config.parser import to_dict
from metrics.rankings import ranking_figures
from prediction.vectors.embed import Vectors, embedding
from prediction.vectors.files import SavedVectors, save_vectors
from prediction.vectors.relevance import Queries, queries_of
from prediction.vectors.search import Found, search
from prediction.vectors.texts import Texts, ids_of, prepare_texts
from prediction.workers.ranks import Shared
from utils.console import tell
from utils.errors import UserError
from utils.escapes import escape_json
from utils.files import run_error, write_file, write_json
from utils.tables import counted

RUN_NAME = "embed"  # of the lines of a TREC run
SAME = {"model": "-model", "pooling": "-pooling", "normalize": "-normalize"}  # of queries and corpus


def run(config: EmbedConfig, given: frozenset[str], shared: Shared) -> None:
    """Embed the texts of -data, and write their vectors, or with -corpus what they find."""
    flags, path = config.embed, Path(config.embed.save_output)
    corpus = SavedVectors.open(Path(config.search.corpus), shared.folder) if config.search.corpus else None
    texts = prepare_texts(config, given, shared)
    ids = ids_of(texts.split, flags.id_column)
    about, queries = described(texts, ids), None
    if corpus:
        check_same(about, corpus, config.search.corpus)
        queries = queries_of(config, texts, ids)
        tell(*queries.lines)
        if is_trec(path):
            check_trec_ids([*queries.ids, *corpus.ids])
    with embedding(texts.ready, texts.split, texts.form) as vectors:
        with run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if corpus and queries:
            find(config, texts, corpus, queries, vectors)
        else:
            save_vectors(path, vectors, ids, {**about, "width": vectors.width}, flags.overwrite)
            tell(f"{counted(len(vectors), 'vector')} of {vectors.width:,} numbers written to {path}")


def described(texts: Texts, ids: Sequence[str] | None) -> dict[str, Any]:
    """What is written beside vectors: all that decides them but the texts."""
    ready, form = texts.ready, texts.form
    return {
        "model": ready.models[0].identity(),
        "pooling": form.pooling,
        "normalize": form.normalize,
        "dtype": form.dtype,
        "input_template": ready.encoder.task.input_template,
        "max_seq_length": ready.encoder.source_limit,
        "rows": len(texts.split),
        "ids": ids is not None,
    }


def check_same(about: Mapping[str, Any], corpus: SavedVectors, name: str) -> None:
    """Raise `UserError` where the vectors of the corpus are not those that -model gives."""
    for key, flag in SAME.items():
        if corpus.about.get(key) != about[key]:
            raise UserError(
                f"{flag}: the vectors of -corpus {name} were made with another one ({corpus.about.get(key)}, here"
                f" {about[key]}); make them again"
            )


def find(config: EmbedConfig, texts: Texts, corpus: SavedVectors, queries: Queries, vectors: Vectors) -> None:
    """Search the corpus for each query, write what was found, and score it."""
    flags, path = config.search, Path(config.embed.save_output)
    device = texts.ready.devices.device(0)
    found = search([vectors[row] for row in queries.rows], corpus.vectors, corpus.ids, flags.top_k, device)
    names = [[corpus.ids[row] for row in rows] for rows in found.rows.tolist()]
    judged = bool(flags.qrels or flags.relevant_column)
    lines = trec_lines(queries, names, found) if is_trec(path) else json_lines(queries, names, found, judged)
    encoded = (f"{line}\n".encode("utf-8", "replace") for line in lines)
    write_file(path, lambda file: file.writelines(encoded), replace=config.embed.overwrite)
    tell(f"what was found is written to {path}")
    if not judged:
        return
    figures = ranking_figures(queries.relevant, names, flags.top_k)
    passages = set(corpus.ids)
    missing = sum(name not in passages for grades in queries.relevant for name, grade in grades.items() if grade > 0)
    if missing:
        told = "is not in the corpus, and never found" if missing == 1 else "are not in the corpus, and never found"
        tell(f"{counted(missing, 'relevant passage')} {told}")
    tell(f"{len(queries.rows):,} queries among {len(passages):,} passages:")
    tell(*(f"  {name:<12} {value:.4f}" for name, value in figures.items()))
    if flags.save_report:
        report = {
            "queries": len(queries.rows),
            "passages": len(passages),
            "relevant_not_in_corpus": missing,
            "metrics": figures,
            "settings": to_dict(config),
        }
        with run_error(Path(flags.save_report)):
            Path(flags.save_report).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(flags.save_report), report, config.embed.overwrite)
        tell(f"report written to {flags.save_report}")


def json_lines(queries: Queries, names: Sequence[Sequence[str]], found: Found, judged: bool) -> Iterator[str]:
    """A JSON object for each query: its id, what is relevant where that is known, and what was found, best first."""
    for row, name in enumerate(queries.ids):
        hits = [{"id": passage, "score": score} for passage, score in zip(names[row], rounded(found, row), strict=True)]
        relevant = {"relevant": queries.relevant[row]} if judged else {}
        yield escape_json(json.dumps({"id": name, **relevant, "found": hits}, ensure_ascii=False))


def is_trec(path: Path) -> bool:
    """Whether a file of that name is a run for `trec_eval`."""
    return path.suffix.lower() == ".trec"


def check_trec_ids(ids: Iterable[str]) -> None:
    """Raise `UserError` where a run for `trec_eval` cannot hold an id."""
    wrong = next((name for name in ids if len(name.split()) != 1), None)
    if wrong is not None:
        raise UserError(f"-save_output: a .trec file holds no id with blanks, such as {wrong[:60]!r}; give .jsonl")


def trec_lines(queries: Queries, names: Sequence[Sequence[str]], found: Found) -> Iterator[str]:
    """A line for each passage that was found, as `trec_eval` reads it."""
    for row, query in enumerate(queries.ids):
        for rank, (name, score) in enumerate(zip(names[row], rounded(found, row), strict=True), 1):
            yield f"{query} Q0 {name} {rank} {score:.9g} {RUN_NAME}"


def rounded(found: Found, row: int) -> Iterator[float]:
    """The scores of a query in the 9 digits that an fp32 number has."""
    return (float(f"{score:.9g}") for score in found.scores[row].tolist())
