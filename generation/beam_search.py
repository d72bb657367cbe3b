"""Beam search with the semantics of `generate` in `transformers`.

encode the sources; every beam holds the start token
each step: hidden states and log-probabilities of all beams of all sources at once; the 2k best continuations of a
    source; those that end, if among the k best, compete for its k finished places; the k best others go on
a source is done when its k places are taken and its best beam, at its present length, is no better than the worst; with
    early stopping, as soon as they are taken
every few steps: sources that are done leave the batch, and cache columns that no beam sees any more are thrown out

Shapes: B sources still in the batch, k beams, V vocabulary (or the most that may follow in a label graph).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from config.flags.inference import DecodeFlags
from generation.constraints import TokenGraph
from generation.incremental.decoder import COLUMNS_TO_COME
from generation.logits_processors import ScoreRules
from generation.passage_spans import SpanGraph
from generation.topk import best_continuations, log_normaliser, require_finite

COMPACT_EVERY = COLUMNS_TO_COME  # steps
COMPACT_SHARE = 0.25  # of the batch that may be done before it shrinks at once
STEPS_UNSEEN = 4  # steps after which a device is asked what is done: the host waits for it
NEVER = float("-inf")


class State(Protocol):
    """The running outputs under a model or several, as `StepState` describes it; `dtype` is that of matrix products."""

    dtype: torch.dtype

    def logits(self, tokens: Tensor, step: int) -> Tensor: ...

    def follow(self, parents: Tensor) -> None: ...

    def columns(self) -> Tensor: ...

    def rows_kept(self, going_on: int) -> int: ...

    def keep(self, rows: Tensor, columns: int | None) -> None: ...


@dataclass(frozen=True)
class SearchOptions:
    """What a search needs besides the flags; `max_length` is in tokens and counts the end token.

    `start_token` is (sources,) where their outputs begin otherwise.
    """

    start_token: int | Tensor
    max_length: int  # at most that of the flags
    rules: ScoreRules
    flags: DecodeFlags
    labels: TokenGraph | SpanGraph | None = None

    @property
    def end_token(self) -> int:
        return self.rules.end_token

    def first_inputs(self, sources: int, device: torch.device) -> Tensor:
        """The decoder inputs (sources, k, 1) of outputs that begin."""
        shape = (sources, self.flags.width, 1)
        if isinstance(self.start_token, int):
            return torch.full(shape, self.start_token, device=device)
        return self.start_token.view(-1, 1, 1).expand(shape).contiguous()


@dataclass(frozen=True)
class FoundTokens:
    """A finished output: its tokens without the start token, and its log-probability over length ** penalty."""

    ids: list[int]
    score: float


@dataclass
class Outputs:
    """Outputs of B sources: scores (B, k), -inf where there is none, lengths (B, k) and tokens (B, k, length)."""

    scores: Tensor
    lengths: Tensor
    tokens: Tensor

    @classmethod
    def none(cls, sources: int, places: int, device: torch.device) -> Outputs:
        """None as yet; there is room for `places` of each source."""
        lengths = torch.zeros(sources, places, dtype=torch.long, device=device)
        tokens = torch.zeros(sources, places, 1, dtype=torch.long, device=device)
        return cls(torch.full((sources, places), NEVER, device=device), lengths, tokens)

    def add(self, rows: Tensor, scores: Tensor, tokens: Tensor) -> None:
        """Let outputs of scores (rows, k) and tokens (rows, k, length) compete for the places of their sources."""
        places, length = scores.shape[1], tokens.shape[2]
        self._widen(length)
        tokens = torch.nn.functional.pad(tokens, (0, self.tokens.shape[2] - length))
        best, chosen = torch.cat((self.scores[rows], scores), 1).topk(places, 1)
        lengths = torch.cat((self.lengths[rows], torch.full_like(self.lengths[rows], length)), 1)
        all_tokens = torch.cat((self.tokens[rows], tokens), 1)
        self.scores[rows] = best
        self.lengths[rows] = lengths.gather(1, chosen)
        self.tokens[rows] = all_tokens.gather(1, chosen.unsqueeze(2).expand(-1, -1, tokens.shape[2]))

    def put(self, rows: Tensor, others: Outputs) -> None:
        """Take the outputs of other sources as those of `rows`."""
        length = others.tokens.shape[2]
        self._widen(length)
        self.scores[rows], self.lengths[rows] = others.scores, others.lengths
        self.tokens[rows, :, :length] = others.tokens

    def select(self, rows: Tensor) -> Outputs:
        """Those of the sources of these row numbers."""
        return Outputs(self.scores[rows], self.lengths[rows], self.tokens[rows])

    def read(self, most: int) -> list[list[FoundTokens]]:
        """The first `most` outputs of every source, by one copy to the host: fp64 holds tokens and scores exactly."""
        numbers = (self.scores.unsqueeze(2), self.lengths.unsqueeze(2), self.tokens)
        rows: list[list[list[float]]] = torch.cat([part[:, :most].double() for part in numbers], 2).tolist()
        return [
            [
                FoundTokens([int(token) for token in tokens[: int(length)]], score)
                for score, length, *tokens in outputs
                if score > NEVER
            ]
            for outputs in rows
        ]

    def _widen(self, length: int) -> None:
        if self.tokens.shape[2] < length:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, 2 * length - self.tokens.shape[2]))


@dataclass
class _Beams:
    """The running beams: decoder inputs (B, k, length), log-probabilities (B, k) and nodes of the label graph."""

    rows: Tensor  # (B,) which source of the call each is
    tokens: Tensor
    scores: Tensor
    done: Tensor  # (B,)
    state: State
    finished: Outputs
    broken: Tensor  # whether a score was NaN, for a source that was not done
    nodes: Tensor = field(default_factory=lambda: torch.empty(0))

    def keep(self, rows: Tensor, columns: int | None) -> None:
        """Go on with these rows only, and with the cache columns that one of them still sees."""
        self.state.keep(rows, columns)
        if len(rows) == len(self.rows):
            return
        self.rows, self.tokens, self.scores, self.done = (
            part[rows] for part in (self.rows, self.tokens, self.scores, self.done)
        )
        self.finished = self.finished.select(rows)
        if self.nodes.numel():
            self.nodes = self.nodes[rows]


def beam_search(state: State, count: int, options: SearchOptions, device: torch.device) -> list[list[FoundTokens]]:
    """For each of `count` sources its up to `num_return` best outputs, best first.

    Fewer come back only where there are fewer label texts. Beams of a source that has just begun are the start token
    k times over, all but one at a log-probability of -inf.

    Raises:
        RunError: scores that are NaN or infinite.
    """
    width = options.flags.width
    scores = torch.full((count, width), NEVER, device=device)
    scores[:, 0] = 0.0
    beams = _Beams(
        rows=torch.arange(count, device=device),
        tokens=options.first_inputs(count, device),
        scores=scores,
        done=torch.zeros(count, dtype=torch.bool, device=device),
        state=state,
        finished=Outputs.none(count, width, device),
        broken=torch.zeros((), dtype=torch.bool, device=device),
    )
    if options.labels is not None:
        beams.nodes = options.labels.roots(count, width)
    found = Outputs.none(count, width, device)
    since_compacted, unseen = 0, 1 if device.type == "cpu" else STEPS_UNSEEN
    for step in range(options.max_length):
        _step(beams, step, options)
        since_compacted += 1
        if (step + 1) % unseen:
            continue
        going_on, columns = look(beams.done, state)
        if not going_on:
            break
        kept = rows_kept(going_on, len(beams.rows), state)
        done = len(beams.rows) - len(kept)
        if since_compacted >= COMPACT_EVERY or done > COMPACT_SHARE * len(beams.rows):
            found.put(beams.rows, beams.finished)
            beams.keep(torch.tensor(kept, device=device), columns)
            since_compacted = 0
    require_finite(beams.broken, state.dtype)
    found.put(beams.rows, beams.finished)
    return found.read(options.flags.num_return)


def look(done: Tensor, state: State) -> tuple[list[int], int | None]:
    """The rows that are not done (B,), and the most cache columns that one of them sees: waits for the device once.

    No columns on a CPU, where they can be counted when they are asked for.
    """
    if done.device.type == "cpu":
        return (~done).nonzero().view(-1).tolist(), None
    told = torch.stack((done.long(), state.columns())).tolist()
    going_on = [row for row, is_done in enumerate(told[0]) if not is_done]
    return going_on, max((told[1][row] for row in going_on), default=0)


def rows_kept(going_on: list[int], rows: int, state: State) -> list[int]:
    """The rows that go on, and as many of the others as the shapes of the state ask for."""
    others = sorted({*range(rows)} - {*going_on})
    return sorted([*going_on, *others[: state.rows_kept(len(going_on)) - len(going_on)]])


def _step(beams: _Beams, step: int, options: SearchOptions) -> None:
    """Lengthen every beam by a token."""
    length = step + 1
    logits = beams.state.logits(beams.tokens[:, :, -1], step)
    scores, parents, tokens, nodes = _continuations(logits, beams, step, options)
    beams.broken |= (scores[:, 0].isnan() & ~beams.done).any()  # NaN is the largest of all, and so the first
    ended = tokens == options.end_token
    if length == options.max_length:
        ended = torch.ones_like(ended)
    _finish(beams, scores, parents, tokens, ended, options)

    beams.scores, best = scores.masked_fill(ended, NEVER).topk(options.flags.width, 1)
    parents, tokens = parents.gather(1, best), tokens.gather(1, best)
    if options.labels is not None:
        beams.nodes = nodes.gather(1, best)
    beams.tokens = torch.cat((_by_beam(beams.tokens, parents), tokens.unsqueeze(2)), 2)
    beams.state.follow(parents)
    # As in `transformers`: with `early_stopping=False` by the best beam's score at its present length.
    hope = beams.scores[:, 0] / length**options.flags.length_penalty
    worst = beams.finished.scores[:, -1]
    beams.done |= (worst > NEVER if options.flags.early_stopping else hope <= worst) | (hope == NEVER)


def _by_beam(values: Tensor, beams: Tensor) -> Tensor:
    """`values` (B, k, length) of the beams (B, n) of every source."""
    return values.gather(1, beams.unsqueeze(2).expand(-1, -1, values.shape[2]))


def _continuations(
    logits: Tensor, running: _Beams, step: int, options: SearchOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 2k best continuations of every source: log-probability, parent beam, token and label node, each (B, 2k).

    Fewer where fewer tokens may follow, but never fewer than k.
    """
    sources, beams, vocabulary = logits.shape
    labels = options.labels
    if step == 0 and options.rules.first_token is not None:
        labels = None  # a fixed first token stands before the labels
    if labels is not None:
        log_sum = log_normaliser(logits.view(-1, vocabulary)).view(sources, beams, 1)
        allowed, targets, exists = labels.choices(running.nodes)
        log_probs = (logits.gather(2, allowed) - log_sum).masked_fill_(~exists, NEVER)
        scores, parents, places = best_continuations(log_probs, running.scores, 2 * beams)
        chosen = parents * log_probs.shape[2] + places
        tokens, nodes = (table.view(sources, -1).gather(1, chosen) for table in (allowed, targets))
        return scores, parents, tokens, nodes
    rules, history = options.rules, running.tokens.view(sources * beams, -1)
    if logits.device.type != "cpu":  # one launch, and no pass of its own for the normaliser
        log_probs = logits.log_softmax(2)
        rules.apply(log_probs.view(-1, vocabulary), history)
        scores, parents, tokens = best_continuations(log_probs, running.scores, 2 * beams)
    else:
        normaliser = log_normaliser(logits.view(-1, vocabulary)).view(sources, beams, 1)
        ruled = rules.act_at(step + 1)
        if ruled:
            rules.apply(logits.sub_(normaliser).view(-1, vocabulary), history)
        scores, parents, tokens = best_continuations(logits, running.scores, 2 * beams, None if ruled else normaliser)
    nodes = torch.empty(0) if options.labels is None else running.nodes.gather(1, parents)
    return scores, parents, tokens, nodes


def _finish(
    running: _Beams, scores: Tensor, parents: Tensor, tokens: Tensor, ended: Tensor, options: SearchOptions
) -> None:
    """Hand over the ended ones of the k best continuations; the outputs of sources that are done stay as they are."""
    beams = options.flags.width
    ended = ended[:, :beams] & (scores[:, :beams] > NEVER) & ~running.done.unsqueeze(1)
    if scores.device.type == "cpu":
        rows = ended.any(1).nonzero().view(-1)
        if not len(rows):
            return
    else:  # all of them: the host would have to wait to know which
        rows = torch.arange(len(ended), device=scores.device)
    sequences = _by_beam(running.tokens[rows, :, 1:], parents[rows, :beams])
    sequences = torch.cat((sequences, tokens[rows, :beams].unsqueeze(2)), 2)
    normalised = scores[rows, :beams] / sequences.shape[2] ** options.flags.length_penalty
    running.finished.add(rows, normalised.masked_fill_(~ended[rows], NEVER), sequences)
