"""Greedy search and sampling with the semantics of `generate` in `transformers`.

each step: logits of all outputs at once; the best token of each, or one drawn from the warped distribution
outputs that have ended wait until all of their source have; then the source leaves the batch

Samples of a source run side by side as its beams do, but never meet. A row draws from a generator of its own, seeded by
its row id, so that what is drawn does not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config.flags.inference import DecodeFlags
from generation.beam_search import (
    COMPACT_EVERY,
    COMPACT_SHARE,
    STEPS_UNSEEN,
    FoundTokens,
    Outputs,
    SearchOptions,
    State,
    look,
    rows_kept,
)
from generation.topk import best_scores, log_normaliser, require_finite

SEED_STRIDE = 0x9E3779B97F4A7C15  # keeps the row ids of two seeds apart


def row_draws(row_ids: list[int], samples: int, length: int, seed: int) -> Tensor:
    """Uniform numbers (rows, samples, length) in [0, 1) that depend on the seed and the row's id only."""
    draws = []
    for row_id in row_ids:
        generator = torch.Generator().manual_seed((seed * SEED_STRIDE + row_id) % 2**63)
        draws.append(torch.rand(samples, length, generator=generator))
    return torch.stack(draws)


def draw_tokens(logits: Tensor, draws: Tensor, flags: DecodeFlags) -> Tensor:
    """One token for each row of (rows, vocabulary) logits, by inversion at `draws` (rows,).

    Logits are divided by the temperature, then only the top-k best are kept; top-p keeps the fewest of them that hold
    at least that probability (Holtzman et al. 2020, section 3.1).
    """
    width = logits.shape[1]
    values, tokens = (logits / flags.temperature).topk(min(flags.top_k or width, width), 1)
    probabilities = values.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= flags.top_p, 0.0)
    reached = probabilities.cumsum(1)
    place = (reached <= draws.unsqueeze(1) * reached[:, -1:]).sum(1, keepdim=True)
    place = place.clamp_(max=width - 1).minimum((probabilities > 0).sum(1, keepdim=True) - 1)
    return tokens.gather(1, place.clamp_(min=0)).view(-1)  # NaN logits leave none: the search refuses them


@dataclass
class _Runs:
    """Outputs under way: decoder inputs (B, k, length), log-probabilities, lengths and whether ended, each (B, k)."""

    rows: Tensor  # (B,) which source of the call each is
    tokens: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor
    state: State
    broken: Tensor  # whether the logit of a token that was taken was NaN or infinite

    def keep(self, rows: Tensor, columns: int | None) -> None:
        """Go on with these rows only."""
        self.rows, self.tokens, self.scores, self.lengths, self.ended = (
            part[rows] for part in (self.rows, self.tokens, self.scores, self.lengths, self.ended)
        )
        self.state.keep(rows, columns)


def sample(
    state: State,
    row_ids: list[int],
    options: SearchOptions,
    device: torch.device,
    with_scores: bool = True,
) -> list[list[FoundTokens]]:
    """The samples of each source, best first; without -do_sample its greedy output.

    A score is the model's own log-probability, whatever the temperature and the rules, over length ** penalty; a fixed
    first token counts 0. Without `with_scores` it is 0.

    Raises:
        RunError: scores that are NaN or infinite.
    """
    count, samples = len(row_ids), options.flags.width
    runs = _Runs(
        rows=torch.arange(count, device=device),
        tokens=options.first_inputs(count, device),
        scores=torch.zeros(count, samples, device=device),
        lengths=torch.zeros(count, samples, dtype=torch.long, device=device),
        ended=torch.zeros(count, samples, dtype=torch.bool, device=device),
        state=state,
        broken=torch.zeros((), dtype=torch.bool, device=device),
    )
    draws = None
    if options.flags.do_sample:
        draws = row_draws(row_ids, samples, options.max_length, options.flags.seed).to(device)
    found = Outputs.none(count, samples, device)
    since_kept, unseen = 0, 1 if device.type == "cpu" else STEPS_UNSEEN
    for step in range(options.max_length):
        chosen = None if draws is None else draws[runs.rows, :, step]
        _step(runs, step, options, chosen, with_scores)
        since_kept += 1
        if (step + 1) % unseen:
            continue
        going_on, columns = look(runs.ended.all(1), state)
        if not going_on:
            break
        kept = rows_kept(going_on, len(runs.rows), state)
        done = len(runs.rows) - len(kept)
        if done > COMPACT_SHARE * len(runs.rows) or (done and since_kept >= COMPACT_EVERY):
            _collect(runs, options, found)
            runs.keep(torch.tensor(kept, device=device), columns)
            since_kept = 0
    require_finite(runs.broken, state.dtype)
    _collect(runs, options, found)
    return [sorted(outputs, key=lambda output: -output.score) for outputs in found.read(samples)]


def _step(runs: _Runs, step: int, options: SearchOptions, draws: Tensor | None, with_scores: bool) -> None:
    """Lengthen every output that has not ended by a token."""
    shape = runs.ended.shape
    logits = runs.state.logits(runs.tokens[:, :, -1], step).view(shape.numel(), -1)
    inputs = runs.tokens.view(len(logits), -1)
    allowed = options.rules.apply(logits.clone() if with_scores else logits, inputs) if options.rules.active else logits
    if draws is None:
        tokens = best_scores(allowed, 1)[1].view(-1)
    else:
        tokens = draw_tokens(allowed, draws.reshape(-1), options.flags)
    taken = logits.gather(1, tokens.unsqueeze(1))
    runs.broken |= (~taken.isfinite().view(shape) & ~runs.ended).any()  # NaN and infinity are taken before others
    if with_scores and not (step == 0 and options.rules.first_token is not None):
        log_probs = taken - log_normaliser(logits)
        runs.scores += log_probs.view(shape).masked_fill_(runs.ended, 0.0)
    tokens = tokens.view(shape).masked_fill_(runs.ended, options.end_token)
    runs.tokens = torch.cat((runs.tokens, tokens.unsqueeze(2)), 2)
    runs.lengths += ~runs.ended
    runs.ended = runs.ended | (tokens == options.end_token)


def _collect(runs: _Runs, options: SearchOptions, found: Outputs) -> None:
    """Put the outputs so far where those of their sources are."""
    scores = runs.scores / runs.lengths**options.flags.length_penalty
    found.put(runs.rows, Outputs(scores, runs.lengths, runs.tokens[:, :, 1:]))
