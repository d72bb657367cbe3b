"""Label token sequences as a graph in tensors: which tokens may follow, for many beams at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

ROOT = 0

Branches = dict[int, int]  # token -> the node that it leads to


class TokenGraph:
    """Which token may follow where, for a search that writes label texts only.

    The branches of all nodes lie one after the other, so that the graph takes 16 bytes a branch and 16 a node, however
    many labels and tokens there are.

    Args:
        children: the branches of every node, the root first.
        ends: nodes where a text may end.

    Attributes:
        tokens: (branches,) the token of each, ascending among those of a node.
        targets: (branches,) the node that it leads to. The end token leads to a last node, from which only the end
            token follows, for ever.
        starts: (nodes,) the first branch of each node; `counts` (nodes,) how many it has, `most` at most.
        longest: tokens of the longest text, the end token included.
    """

    def __init__(self, children: Sequence[Branches], ends: Collection[int], end_token: int, longest: int) -> None:
        ended = {end_token: len(children)}
        ends = frozenset(ends)
        nodes = [{**branches, **ended} if node in ends else branches for node, branches in enumerate(children)]
        branches = [branch for node in (*nodes, ended) for branch in sorted(node.items())]
        self.longest = longest
        self.tokens = torch.tensor([token for token, _ in branches])
        self.targets = torch.tensor([target for _, target in branches])
        self.counts = torch.tensor([len(node) for node in (*nodes, ended)])
        self.starts = self.counts.cumsum(0) - self.counts
        self.most = int(self.counts.max())

    def choices(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What may follow nodes of any shape (...): tokens, the nodes they lead to, and which of them are there.

        All three are (..., most): as wide as the node of most branches among these, the others filled up with copies;
        on a device, for which the host would have to wait, as wide as that of most branches of all.
        """
        counts = self.counts[nodes].unsqueeze(-1)
        place = torch.arange(int(counts.max()) if nodes.device.type == "cpu" else self.most, device=nodes.device)
        branches = self.starts[nodes].unsqueeze(-1) + place.minimum(counts - 1)
        return self.tokens[branches], self.targets[branches], place < counts

    def roots(self, count: int, width: int) -> Tensor:
        """(count, width) the nodes where outputs begin."""
        return torch.full((count, width), ROOT, device=self.tokens.device)

    def to(self, device: torch.device) -> TokenGraph:
        """Move the tensors to `device`; returns the graph itself."""
        self.tokens, self.targets, self.starts, self.counts = (
            table.to(device) for table in (self.tokens, self.targets, self.starts, self.counts)
        )
        return self


class LabelTrie:
    """A prefix tree over label token sequences, each closed by the end token.

    A label that is the beginning of another ends where the other goes on: there the end token is one of the choices.
    Only inner nodes are numbered, in the order of a walk in which parents come before children.

    Args:
        texts: of the labels.
        labels: their tokens, without the end token.

    Attributes:
        graph: what may follow each node.
        entered_by: (nodes,) the token (id) that leads to a node; -1 for the root.
        depths: (nodes,) tokens from the root.
        paths: for every label the (node, token id) pairs from the root to its end.
        longest: tokens of the longest label, the end token included.

    Raises:
        ValueError: no label, an empty one, the end token inside one, or two of the same tokens.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[Sequence[int]], end_token: int) -> None:
        children: list[Branches] = [{}]
        parents = [ROOT]
        entered_by = [-1]
        depths = [0]
        owners: dict[int, int] = {}  # node where a label ends -> the label
        self.paths: list[list[tuple[int, int]]] = []
        self._texts: dict[tuple[int, ...], str] = {}
        if not labels:
            raise ValueError("no labels")
        for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
            _check_label(text, label, end_token)
            node, path = ROOT, []
            for token in label:
                path.append((node, token))
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                    parents.append(node)
                    entered_by.append(token)
                    depths.append(depths[node] + 1)
                node = children[node][token]
            if node in owners:
                raise ValueError(
                    f"the tokenizer writes labels {texts[owners[node]]!r} and {text!r} with the same tokens, and the"
                    " model cannot tell them apart; change the text of one of them in the label map"
                )
            owners[node] = number
            self.paths.append([*path, (node, end_token)])
            self._texts[tuple(label)] = text
        self.longest = max(len(path) for path in self.paths)
        self.parents = parents
        self.entered_by = torch.tensor(entered_by)
        self.depths = torch.tensor(depths)
        self.graph = TokenGraph(children, owners.keys(), end_token, self.longest)

    def text(self, tokens: Sequence[int]) -> str:
        """The label of these tokens (without the end token); `KeyError` for others.

        Decoding the tokens would not do: a tokenizer that normalises its input gives another text back.
        """
        return self._texts[tuple(tokens)]

    def ancestors(self) -> Tensor:
        """(nodes, nodes), True where the second node lies on the path from the root to the first, itself included."""
        count = len(self.parents)
        seen = torch.eye(count, dtype=torch.bool)
        for node in range(1, count):
            seen[node] |= seen[self.parents[node]]
        return seen


def _check_label(text: str, tokens: Sequence[int], end_token: int) -> None:
    if not tokens:
        raise ValueError(f"label {text!r} has no tokens: the tokenizer drops all of it; change it in the label map")
    if end_token in tokens:
        raise ValueError(f"label {text!r} holds the end token; change it in the label map")
