"""Log-probabilities of every label for every source, in one pass of the decoder.

The nodes of the label trie are the decoder's queries: each stands at its depth and sees its ancestors only, so that a
prefix is computed once for all labels that share it. All nodes of a source attend to the same cross-attention keys and
values. The log-probability of a label is the sum over its path of the log-probability of the next token at each node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generation.decoder import label_trie
from generation.incremental.decoder import StepModel
from generation.incremental.layers import NoMemory, without_autocast
from generation.incremental.weights import compute_dtype, supports
from generation.topk import log_normaliser, require_finite
from models.architectures import target_limit
from models.forward import decoder_start_token
from models.special_tokens import example_target, fixed_first_token

QUERIES_AT_ONCE = 2**15  # of all sources together: bounds the memory of many or long labels
MOST_NODES = 2**13  # of the tree of labels; who sees whom is a table of nodes x nodes
LOGITS_AT_ONCE = 2**22  # on a CPU: 16 MB of fp32, which are looked at while they are still in the cache
LOGITS_AT_ONCE_ELSEWHERE = 2**28  # 1 GiB: a device is to be kept busy


@dataclass(frozen=True)
class _Pass:
    """What is the same for every batch: the decoder, its inputs, and what is read from its outputs."""

    model: StepModel
    tokens: Tensor  # (1, queries)
    positions: Tensor  # (1, queries)
    biases: list[Tensor | None]
    pair_nodes: Tensor  # (pairs,)
    pair_tokens: Tensor  # (pairs,)
    steps: Tensor  # (labels, longest)


class LabelScorer:
    """Log-probabilities of label texts under a model; its weights are taken as they are at the first call.

    Args:
        labels: texts, encoded as targets are. A fixed first token (BART's `<s>`, mBART's language) counts 0, as it does
            in generation; the end token counts.

    Raises:
        ValueError: an architecture or a kind of layers that `decoder_weights.supports` does not know; a label without
            tokens or with more than the model can write, two with the same ones, or too many.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> None:
        if not supports(model):
            raise ValueError(f"labels cannot be scored with {type(model).__name__}")
        self.model = model
        self.trie = label_trie(tokenizer, labels)
        if len(self.trie.depths) > MOST_NODES:
            raise ValueError(
                f"the {len(labels):,} labels have {len(self.trie.depths):,} beginnings, and at most {MOST_NODES:,} are"
                " scored; use -label_decoding constrained"
            )
        start = decoder_start_token(model, example_target(tokenizer))
        first = fixed_first_token(tokenizer)
        # Decoder inputs: what stands before the labels, then the token that each node was entered by.
        self.before = [start] if first is None else [start, first]
        limit = target_limit(model.config)
        if limit and len(self.before) + self.trie.longest - 1 > limit:
            raise ValueError(f"the longest label has {self.trie.longest} tokens; the model writes at most {limit}")
        self._passes: dict[tuple[torch.dtype, torch.device], _Pass] = {}
        pairs = {pair: None for path in self.trie.paths for pair in path}
        number = {pair: index for index, pair in enumerate(pairs)}
        self.pair_nodes = torch.tensor([node for node, _ in pairs])
        self.pair_tokens = torch.tensor([token for _, token in pairs])
        # (labels, longest) pairs on a label's path, filled up with one that stands for nothing
        self.steps = torch.full((len(labels), self.trie.longest), len(pairs))
        for label, path in enumerate(self.trie.paths):
            self.steps[label, : len(path)] = torch.tensor([number[pair] for pair in path])

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """fp64 (batch, labels) log-probabilities for (batch, source_length) ids.

        Raises:
            RunError: they are NaN or infinite.
        """
        rows = max(1, QUERIES_AT_ONCE // (len(self.before) + len(self.trie.depths)))
        parts = [slice(start, start + rows) for start in range(0, len(input_ids), rows)]
        scores = torch.cat([self._scores(input_ids[part], attention_mask[part]) for part in parts])
        require_finite(~scores.isfinite().all(), compute_dtype(self.model))
        return scores

    def _scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        fixed = self._pass(input_ids.device)
        model = fixed.model
        given = model.encode(input_ids, attention_mask)
        tokens = fixed.tokens.expand(len(input_ids), -1)
        with without_autocast(input_ids.device):
            hidden = model.hidden(tokens, fixed.positions, fixed.biases, NoMemory(), given)
            hidden = hidden[:, len(self.before) - 1 :]  # (batch, nodes, width)
            log_probs = functional.pad(_pair_log_probs(fixed, hidden), (0, 1))
            return log_probs[:, fixed.steps].sum(2)

    def release(self) -> None:
        """Hold the weights in the precision in force only, from now on: the model itself can be used no more."""
        self._pass(self.model.device).model.release(self.model)

    def _pass(self, device: torch.device) -> _Pass:
        dtype = compute_dtype(self.model)
        if (dtype, device) not in self._passes:
            model = StepModel(self.model, dtype)
            tokens, positions, visible = (part.to(device) for part in self._queries(dtype))
            biases = model.self_bias(positions.unsqueeze(2) - positions.unsqueeze(1), visible)
            pairs = (part.to(device) for part in (self.pair_nodes, self.pair_tokens, self.steps))
            self._passes[dtype, device] = _Pass(model, tokens, positions, biases, *pairs)
        return self._passes[dtype, device]

    def _queries(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions (1, queries) of the pass, and who sees whom (1, queries, queries)."""
        extra = len(self.before) - 1
        entered = self.trie.entered_by
        tokens = torch.cat((torch.tensor(self.before), entered[1:]))
        positions = torch.cat((torch.arange(extra), self.trie.depths + extra))
        count = len(tokens)
        seen = torch.ones(count, count, dtype=torch.bool).tril_()
        seen[extra:, extra:] = self.trie.ancestors()
        visible = torch.zeros(count, count, dtype=dtype).masked_fill_(~seen, float("-inf"))
        return tokens.unsqueeze(0), positions.unsqueeze(0), visible.unsqueeze(0)


def _pair_log_probs(fixed: _Pass, hidden: Tensor) -> Tensor:
    """fp64 (batch, pairs) log-probability of each pair's token at its node, by parts of the batch.

    In fp32 the difference of a logit and the normaliser is rounded at every token, and then again their sum.
    """
    vocabulary = fixed.model.vocabulary
    parts = []
    most = LOGITS_AT_ONCE if hidden.device.type == "cpu" else LOGITS_AT_ONCE_ELSEWHERE
    rows = max(1, most // (vocabulary * hidden.shape[1]))
    for start in range(0, len(hidden), rows):
        logits = fixed.model.logits(hidden[start : start + rows])
        normaliser = log_normaliser(logits.view(-1, vocabulary)).view(logits.shape[:2])
        parts.append(logits[:, fixed.pair_nodes, fixed.pair_tokens].double() - normaliser[:, fixed.pair_nodes].double())
    return torch.cat(parts)
