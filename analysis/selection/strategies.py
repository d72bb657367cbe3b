"""All strategies, registered."""

from __future__ import annotations

from analysis.selection import clusters, label_errors, rare_pieces, uncertainty
from analysis.selection.registry import STRATEGIES

FILES = (uncertainty, label_errors, rare_pieces, clusters)  # each registers its own when it is loaded
NAMES = tuple(STRATEGIES)
