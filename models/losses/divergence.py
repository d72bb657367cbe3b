"""Kullback-Leibler divergences in the loss: of a student from its teacher, and of two passes with other dropout.

Both are sums over target tokens in nats, computed with their gradient chunk by chunk as the cross-entropy is: of all
the models' logits no more than a chunk is ever alive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses.chunked import logits_of
from models.losses.cross_entropy import cross_entropy_in_place

COPIES = 6  # of a chunk's logits that are alive at a time, in either


@dataclass(frozen=True)
class Distillation:
    """(1 - w) * cross-entropy + w * T^2 * KL(teacher || student), both distributions softened by T.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; word by word of the target as in Kim
    and Rush 2016, "Sequence-Level Knowledge Distillation", section 3.1.

    Args:
        hidden: (target tokens, d_model of the teacher) the teacher's hidden states, scaled as its logits are.
        rows: (vocabulary and what aligns it, d_model of the teacher) its output embedding, in the type of `hidden`.
        bias: (vocabulary,) or None.
        temperature: T, above 0.
        softcap: of the teacher's logits, 0 = off.
        share: w, 0 to 1.
        token_weights: (target tokens,) factors; None = all 1.
    """

    hidden: Tensor
    rows: Tensor
    bias: Tensor | None
    temperature: float
    share: float
    label_smoothing: float = 0.0
    token_weights: Tensor | None = None
    softcap: float = 0.0
    passes: int = 1

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """See `Criterion`."""
        factors = _factors(self.token_weights, places, logits)
        taught = logits_of(self.hidden[places], self.rows, self.bias, vocabulary, logits.dtype)[:, :vocabulary]
        if self.softcap:
            taught = taught.div_(self.softcap).tanh_().mul_(self.softcap)
        taught = torch.log_softmax(taught.div_(self.temperature), -1)
        softened = torch.log_softmax(logits[:, :vocabulary] / self.temperature, -1)
        probabilities = taught.exp()
        divergence = (probabilities * taught.sub_(softened)).sum(-1)
        loss = (divergence * factors).sum() * (self.share * self.temperature**2)
        rest = factors * (1.0 - self.share)
        loss += cross_entropy_in_place(logits, target, vocabulary, self.label_smoothing, rest, with_gradient)
        if with_gradient:  # d T^2 * KL / d logits = T * (student - teacher)
            gradient = softened.exp_().sub_(probabilities)
            logits[:, :vocabulary] += gradient.mul_(factors.unsqueeze(1) * (self.share * self.temperature))
        return loss


@dataclass(frozen=True)
class RDrop:
    """Mean cross-entropy of two passes + a * (KL(first || second) + KL(second || first)) / 2.

    Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", section 2, with the mean of the two
    cross-entropies in place of their sum, as in the example of its authors' repository.

    Args:
        alpha: a, 0 or above.
        token_weights: (target tokens,) factors; None = all 1.
    """

    alpha: float
    label_smoothing: float = 0.0
    token_weights: Tensor | None = None
    passes: int = 2

    def __call__(
        self, logits: Tensor, target: Tensor, vocabulary: int, places: slice, *, with_gradient: bool
    ) -> Tensor:
        """See `Criterion`; the two passes of a token are neighbours."""
        factors = _factors(self.token_weights, places, logits, len(target))
        both: Tensor = torch.log_softmax(logits[:, :vocabulary], -1).view(-1, 2, vocabulary)
        probabilities = both.exp()  # (tokens, 2, vocabulary)
        surplus = both - both.flip(1)  # log p - log q of the first pass, log q - log p of the second
        divergences = (probabilities * surplus).sum(-1, keepdim=True)  # (tokens, 2, 1)
        scale = factors[:, None, None] * (self.alpha / 2)
        loss: Tensor = (divergences * scale).sum()
        halves = factors.repeat_interleave(2) / 2
        twice = target.repeat_interleave(2)
        loss += cross_entropy_in_place(logits, twice, vocabulary, self.label_smoothing, halves, with_gradient)
        if with_gradient:
            # d KL(p || q) / d logits of p = p * (log p - log q - KL(p || q)), and of q it is q - p
            gradient = surplus.sub_(divergences).mul_(probabilities)
            gradient.add_(probabilities).sub_(probabilities.flip(1))
            logits[:, :vocabulary] += gradient.mul_(scale).flatten(0, 1)
        return loss


def _factors(token_weights: Tensor | None, places: slice, logits: Tensor, tokens: int | None = None) -> Tensor:
    """(tokens,) factors of a chunk in the type of its logits."""
    count = len(logits) if tokens is None else tokens
    return logits.new_ones(count) if token_weights is None else token_weights[places].to(logits.dtype)
