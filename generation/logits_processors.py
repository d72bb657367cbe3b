"""What changes the scores of next tokens: repetition penalty, n-gram blocking, minimum length, a fixed first token.

Each rule works on (rows, vocabulary) scores in place, given the (rows, length) decoder inputs so far, the start token
included, and follows the class of the same purpose in `transformers.generation.logits_process`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKED = float("-inf")


@dataclass(frozen=True)
class ScoreRules:
    """The rules in force; lengths are in tokens and count the end token.

    `first_token` is (sources,) where those of the sources differ; a source has several rows one after the other.
    """

    end_token: int
    repetition_penalty: float = 1.0  # 1 = off
    no_repeat_ngram_size: int = 0  # 0 = off
    min_length: int = 0
    first_token: int | Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        lengths = self.no_repeat_ngram_size or self.min_length
        return self.repetition_penalty != 1.0 or bool(lengths) or self.first_token is not None

    def act_at(self, length: int) -> bool:
        """Whether any rule changes the scores of what follows that many decoder inputs."""
        begins = length == 1 and self.first_token is not None
        blocks = 0 < self.no_repeat_ngram_size <= length or length < self.min_length
        return begins or blocks or self.repetition_penalty != 1.0

    def apply(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """The scores with the rules applied, in the order of `transformers`."""
        length = tokens.shape[1]
        if self.repetition_penalty != 1.0:
            penalise_repetition(scores, tokens, self.repetition_penalty)
        if self.no_repeat_ngram_size and length >= self.no_repeat_ngram_size:
            block_ngrams(scores, tokens, self.no_repeat_ngram_size)
        if length < self.min_length:
            scores[:, self.end_token] = BLOCKED
        if length == 1 and self.first_token is not None:
            force_first(scores, self.first_token)
        return scores


def force_first(scores: Tensor, token: int | Tensor) -> None:
    """Block all but the first token, of all rows or of those of each source."""
    scores.fill_(BLOCKED)
    if isinstance(token, int):
        scores[:, token] = 0.0
    else:
        scores.scatter_(1, token.repeat_interleave(len(scores) // len(token)).unsqueeze(1), 0.0)


def penalise_repetition(scores: Tensor, tokens: Tensor, penalty: float) -> None:
    """Divide the positive scores of used tokens by `penalty`, multiply the negative ones (CTRL, section 4.1)."""
    used = scores.gather(1, tokens)
    scores.scatter_(1, tokens, torch.where(used < 0, used * penalty, used / penalty))


def block_ngrams(scores: Tensor, tokens: Tensor, size: int) -> None:
    """Block every token that would complete an n-gram which the row holds already."""
    windows = tokens.unfold(1, size, 1)  # (rows, length - size + 1, size)
    last = tokens[:, tokens.shape[1] - size + 1 :]
    repeated = (windows[..., :-1] == last.unsqueeze(1)).all(-1)
    scores.scatter_reduce_(1, windows[..., -1], torch.where(repeated, BLOCKED, -BLOCKED).to(scores.dtype), "amin")
