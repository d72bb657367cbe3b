"""The rows of a pretraining: corpora tokenized, cut, and given to an objective."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.model_source import ModelSource
from checkpoints.saved_run import SavedRun
from config.flags.corpus import CorpusFlags
from config.flags.pretrain import SOURCE_LENGTH, PretrainConfig
from datamodules.corpus.corpus import Corpus, build_corpus, rated_values
from datamodules.corpus.selection import Selection
from datamodules.corpus.sources import DocumentOptions
from datamodules.corpus_rows import ClozeRows, CorpusRows, HeldOutRows, Member, TokenStream
from datamodules.mixture import Mixture
from datamodules.objectives.build import build_cloze, build_objective
from datamodules.objectives.sentinels import sentinel_ids
from datamodules.retrieval.checks import compared_words, is_retrieval
from datamodules.retrieval.passages import Cloze, Passages
from datamodules.splits import Splits
from models.architectures import source_limit, target_limit
from models.forward import takes_packed
from training.setup import Prepared, TrainingData, limit_line, prepare
from utils.console import say
from utils.errors import UserError
from utils.tables import counted


def prepare_pretraining(config: PretrainConfig, mixture: Mixture, resumed: SavedRun | None) -> Prepared:
    """What `fit` needs; raises as `prepare`, and what the corpora and the objective raise."""
    return prepare(config, mixture, resumed, encoded=corpus_rows)


def corpus_rows(
    config: PretrainConfig,
    mixture: Mixture,
    source: ModelSource,
    cache: Path,
    world_size: int,
) -> TrainingData:
    """The rows of the corpora, whose tokens are kept in the folder `cache`, and those that are validated on; says how
    many there are."""
    tokenizer, every = source.tokenizer, config.pretraining.valid_every
    longest = _tighter(config.length.max_seq_length or SOURCE_LENGTH, source_limit(source.config))
    longest_target = _tighter(config.length.max_target_length, target_limit(source.config))
    objective = build_objective(config.objective, tokenizer, longest, longest_target)
    if config.objective.pack_documents and not takes_packed(source.config):
        kind = source.config.model_type
        raise UserError(f"-pack_documents: a {kind} model counts its positions through a whole row; leave it out")
    length = objective.raw_length(longest, longest_target)
    build = partial(_built, flags=config.corpus, tokenizer=tokenizer, cache=cache)
    paths, rates = rated_values(config.corpus.corpus)
    corpora = [build([path]) for path in paths] if rates else [build(paths)]
    held = config.corpus.valid_corpus
    other = build(held, flag="-valid_corpus") if held else None
    names = paths if rates else [" ".join(paths)]
    held_out, stops = held_out_cuts(
        dict(zip(names, corpora, strict=True)), other, length, config.pretraining.valid_rows
    )
    members = [
        Member(corpus, stop, rate, name)
        for corpus, stop, rate, name in zip(corpora, stops, rates or [1.0], names, strict=True)
    ]
    special_ids = np.append(sentinel_ids(tokenizer), tokenizer.eos_token_id)
    rows = CorpusRows(members, length, objective, config.run.seed, every, special_ids)
    valid = HeldOutRows(held_out, length, objective) if held_out else None
    say(
        f"a row is {length:,} tokens of the corpus: up to {rows.source_lengths.max():,} source and"
        f" {rows.target_lengths.max():,} target tokens; {counted(len(rows), 'row')} in a pass,"
        f" {counted(len(held_out), 'validation row')}"
    )
    task = mixture.tasks[0]
    part = Splits(task, rows, valid, None, ())  # type: ignore[arg-type]  # what is taken of encoded splits is there
    finds = is_retrieval(mixture.tasks)
    if finds or config.cloze_weight:
        say(compared_words(config.batch.batch_size * config.batch.grad_acc * world_size, negatives=0))
    passages = Passages(rows) if finds else None
    cloze = _pairs(config, source, rows, valid) if config.cloze_weight else None
    return TrainingData((part,), rows, passages, cloze)


def _pairs(config: PretrainConfig, source: ModelSource, rows: CorpusRows, valid: HeldOutRows | None) -> Cloze:
    """The rows as a query and its passage each, for a joint loss."""
    flags, limit = config.objective, source_limit(source.config)
    names = ("max_query_length", "max_passage_length")
    wanted = [getattr(flags, name) for name in names]
    say(*(line for name, length in zip(names, wanted, strict=True) for line in limit_line(name, length, limit)))
    objective = build_cloze(flags, source.tokenizer, *(_tighter(length, limit) for length in wanted))
    of_valid = Passages(ClozeRows(valid, objective)) if valid else None
    return Cloze(Passages(ClozeRows(rows, objective)), of_valid)


def _built(paths: Sequence[str], flags: CorpusFlags, tokenizer: Any, cache: Path, flag: str = "-corpus") -> Corpus:
    """A corpus, tokenized; says what became of its documents."""
    options = DocumentOptions(flags.corpus_format, flags.corpus_documents, flags.corpus_column, flag)
    selection = Selection(flags.min_document_tokens, flags.max_document_tokens, flags.deduplicate)
    corpus = build_corpus(paths, options, selection, tokenizer, cache)
    say(*corpus.report.lines())
    return corpus


def _a_tenth(corpora: Collection[TokenStream], length: int) -> int:
    """Validation rows that take a tenth of the smallest corpus."""
    return min(corpus.num_tokens for corpus in corpora) // length // 10 * len(corpora)


def _tighter(wanted: int, limit: int) -> int:
    """The smaller of two limits where 0 means none."""
    return min(wanted, limit) if wanted and limit else wanted or limit


def held_out_cuts(
    corpora: Mapping[str, TokenStream], other: TokenStream | None, length: int, wanted: int
) -> tuple[list[tuple[TokenStream, int]], list[int]]:
    """The cuts that are validated on, and where those to train on end in each corpus.

    They are evenly spaced in `other`, which is for validation alone; without it as many are cut off the end of each
    corpus.

    Args:
        length: tokens of a cut.
        wanted: the number of cuts.

    Raises:
        UserError: nothing is left to train on, or there is nothing to validate on.
    """
    ends = [corpus.num_tokens for corpus in corpora.values()]
    if other is not None:
        there = other.num_tokens // length
        if wanted and not there:
            raise UserError(f"-valid_corpus: its {other.num_tokens:,} tokens are not one row of {length:,}")
        chosen = np.unique(np.linspace(0, there - 1, min(wanted, there)).round().astype(int)).tolist()
        return [(other, number * length) for number in chosen], ends
    found: list[tuple[TokenStream, int]] = []
    for number, (name, corpus) in enumerate(corpora.items()):
        rows = wanted * (number + 1) // len(corpora) - wanted * number // len(corpora)
        ends[number] -= rows * length
        if rows and ends[number] < length:
            raise UserError(
                f"-corpus {name}: {corpus.num_tokens:,} tokens are {corpus.num_tokens // length:,} rows of {length:,};"
                f" -valid_rows {wanted} leaves none to train on: give -valid_corpus, or fewer, such as -valid_rows"
                f" {_a_tenth(corpora.values(), length)}"
            )
        found += [(corpus, ends[number] + place * length) for place in range(rows)]
    return found, ends
