"""Label token sequences as a graph in tensors: which tokens may follow, for many beams at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

ROOT = 0

Branches = dict[int, int]  # token -> the node that it leads to


class TokenGraph:
    """Which token may follow where, for a search that writes label texts only.

    Args:
        children: the branches of every node, the root first.
        ends: nodes where a text may end.

    Attributes:
        tokens: (A,) the tokens that occur, ascending; the other tensors number tokens by their place here.
        blocked: (nodes, A) 0 where a token may follow a node and -inf elsewhere.
        following: (nodes, A) the node that a token leads to; the root after an end token or a blocked one.
        longest: tokens of the longest text, the end token included.
    """

    def __init__(self, children: Sequence[Branches], ends: Collection[int], end_token: int, longest: int) -> None:
        known = sorted({token for branches in children for token in branches} | {end_token})
        place = {token: index for index, token in enumerate(known)}
        self.longest = longest
        self.tokens = torch.tensor(known)
        self.blocked = torch.full((len(children), len(known)), float("-inf"))
        self.following = torch.full((len(children), len(known)), ROOT)
        for node, branches in enumerate(children):
            for token, child in branches.items():
                self.blocked[node, place[token]] = 0.0
                self.following[node, place[token]] = child
        for node in ends:
            self.blocked[node, place[end_token]] = 0.0

    def to(self, device: torch.device) -> TokenGraph:
        """Move the tensors to `device`; returns the graph itself."""
        self.tokens, self.blocked, self.following = (
            table.to(device) for table in (self.tokens, self.blocked, self.following)
        )
        return self


class LabelTrie:
    """A prefix tree over label token sequences, each closed by the end token.

    A label that is the beginning of another ends where the other goes on: there the end token is one of the choices.
    Only inner nodes are numbered, in the order of a walk in which parents come before children.

    Attributes:
        graph: what may follow each node.
        entered_by: (nodes,) the token (id) that leads to a node; -1 for the root.
        depths: (nodes,) tokens from the root.
        paths: for every label the (node, token id) pairs from the root to its end.
        longest: tokens of the longest label, the end token included.

    Raises:
        ValueError: no label, an empty one, the end token inside one, or two of the same tokens.
    """

    def __init__(self, labels: Sequence[Sequence[int]], end_token: int) -> None:
        children: list[Branches] = [{}]
        parents = [ROOT]
        entered_by = [-1]
        depths = [0]
        owners: dict[int, int] = {}  # node where a label ends -> the label
        self.paths: list[list[tuple[int, int]]] = []
        if not labels:
            raise ValueError("no labels")
        for number, label in enumerate(labels):
            if not label or end_token in label:
                raise ValueError(f"label {number} is empty or holds the end token: {list(label)}")
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
                raise ValueError(f"labels {owners[node]} and {number} have the same tokens: {list(label)}")
            owners[node] = number
            self.paths.append([*path, (node, end_token)])
        self.longest = max(len(path) for path in self.paths)
        self.parents = parents
        self.entered_by = torch.tensor(entered_by)
        self.depths = torch.tensor(depths)
        self.graph = TokenGraph(children, owners.keys(), end_token, self.longest)

    def ancestors(self) -> Tensor:
        """(nodes, nodes), True where the second node lies on the path from the root to the first, itself included."""
        count = len(self.parents)
        seen = torch.eye(count, dtype=torch.bool)
        for node in range(1, count):
            seen[node] |= seen[self.parents[node]]
        return seen
