"""Which rows are chosen, and why: strategies by numbers worked out by hand, quotas, and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from analysis.selection.choose import Groups
from analysis.selection.registry import STRATEGIES, Candidate, Rows, best, best_of_groups, shares_of
from analysis.selection.strategies import NAMES
from config.flags.select_rows import STRATEGIES as OF_FLAG
from postprocessors.labels import LabelMap
from utils.errors import UserError

LABELS = LabelMap.parse("0=a,1=b,2=c")


def rows(shares: Sequence[Sequence[float]], references: Sequence[str | None] = (), **more: object) -> Rows:
    return Rows(
        count=len(shares),
        source_ids=lambda row: np.array(shares[row]),
        reference=lambda row: references[row],
        probabilities=lambda row: shares[row],
        labels=LABELS,
        **more,  # type: ignore[arg-type]
    )


def chosen(name: str, of: Rows, count: int = 9) -> list[tuple[int, float, str]]:
    found = best(STRATEGIES[name].candidates(of, count), count)
    return [(one.row, round(one.score, 4), one.reason) for one in found]


def test_the_flag_lists_all_strategies() -> None:
    assert set(OF_FLAG) == set(NAMES)


def test_a_small_margin_and_a_large_entropy_come_first() -> None:
    of = rows([(0.9, 0.06, 0.04), (0.5, 0.49, 0.01), (0.4, 0.3, 0.3)])
    assert chosen("margin", of) == [
        (1, 0.99, "margin 0.0100: a 0.5000, b 0.4900"),
        (2, 0.9, "margin 0.1000: a 0.4000, b 0.3000"),
        (0, 0.16, "margin 0.8400: a 0.9000, b 0.0600"),
    ]
    entropy = -(0.4 * math.log(0.4) + 2 * 0.3 * math.log(0.3))
    (first, *_) = chosen("entropy", of)
    assert first == (2, round(entropy, 4), f"entropy {entropy:.4f} nats of at most 1.0986")
    assert [row for row, *_ in chosen("entropy", of)] == [2, 1, 0]
    assert chosen("entropy", rows([(1.0, 0.0, 0.0)]))[0][1] == 0


def test_a_seldom_label_weighs_more() -> None:
    """Both rows are as unsure; b is expected half as often as a."""
    of = rows([(0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.8, 0.1, 0.1)])
    means = {"a": 1.6 / 3, "b": 0.9 / 3}
    assert chosen("rare-class", of, 2) == [
        (1, round(0.4 / (3 * means["b"]), 4), "b 0.6000, a label of 0.3000 of all rows"),
        (0, round(0.4 / (3 * means["a"]), 4), "a 0.6000, a label of 0.5333 of all rows"),
    ]


def test_the_label_closest_to_its_threshold_decides() -> None:
    of = rows([(0.9, 0.52, 0.1), (0.5, 0.1, 0.29)], thresholds=(0.5, 0.5, 0.3))
    assert chosen("threshold", of) == [
        (1, 1.0, "a 0.5000, threshold 0.5"),
        (0, 0.98, "b 0.5200, threshold 0.5"),
    ]


def test_confident_learning_finds_the_row_off_the_diagonal() -> None:
    """Mean p of a over its rows is (0.9 + 0.7 + 0.2) / 3 = 0.6, of b (0.8 + 0.4) / 2 = 0.6; nobody has c."""
    shares = [(0.9, 0.1, 0.0), (0.7, 0.3, 0.0), (0.2, 0.8, 0.0), (0.2, 0.8, 0.0), (0.59, 0.4, 0.01), (0.0, 1.0, 0.0)]
    of = rows(shares, ["a", "a", "a", "b", "b", None])
    assert chosen("label-errors", of) == [(2, 0.6, "labelled a (0.2000), looks like b (0.8000)")]
    assert chosen("label-errors", rows(shares[:2], ["a", "a"])) == []


def test_confident_learning_names_rows_whose_label_was_changed() -> None:
    """Of 1,000 rows 50 labels are changed; the model is sure of about half of these, and of no other."""
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 3, 1000)
    shares = draw.dirichlet((1, 1, 1), 1000) * 0.4 + 0.6 * np.eye(3)[truth]
    changed = set(draw.choice(1000, 50, replace=False).tolist())
    given = [LABELS.texts[(label + (row in changed)) % 3] for row, label in enumerate(truth.tolist())]
    found = [row for row, *_ in chosen("label-errors", rows(shares.tolist(), given), 50)]
    assert (len(found), set(found) - changed) == (27, set())


def test_tokens_that_training_never_had_come_first() -> None:
    trained = [np.array([1, 1, 2, 0], np.uint16), np.array([1, 3], np.uint16)]
    of = rows([(1, 1), (1, 2), (7, 1), (3, 1, 1, 1)], trained=lambda: trained, unknown_id=3, piece="t{}".format)
    counts = {0: 1, 1: 3, 2: 1, 3: 0}  # an unknown token does not count as known
    total = math.log(sum(counts.values()) + 4 + 1)

    def surprise(*tokens: int) -> float:
        return round(sum(total - math.log(counts.get(token, 0) + 1) for token in tokens) / len(tokens), 4)

    assert chosen("rare-pieces", of) == [
        (2, surprise(7, 1), "rarest pieces, with their count in training: 't7' 0, 't1' 3"),
        (1, surprise(1, 2), "rarest pieces, with their count in training: 't2' 1, 't1' 3"),
        (3, surprise(3, 1, 1, 1), "rarest pieces, with their count in training: unknown 0, 't1' 3"),
        (0, surprise(1, 1), "rarest pieces, with their count in training: 't1' 3"),
    ]


def clouds(*sizes: int) -> np.ndarray:
    """Rows around (1, 0, 0), (0, 1, 0), ..., one cloud after the other."""
    draw = np.random.default_rng(2)
    centres = np.repeat(np.eye(3)[: len(sizes)], sizes, axis=0)
    return (centres + 0.01 * draw.standard_normal(centres.shape)).astype(np.float32)


def test_diversity_takes_one_row_of_each_cloud_the_largest_first() -> None:
    vectors = clouds(50, 200, 100)
    found = chosen("diversity", rows([()] * 350, vectors=vectors), 3)
    clouds_of = [row // 50 if row < 50 else 1 if row < 250 else 2 for row, *_ in found]
    assert (clouds_of, [score for _, score, _ in found]) == ([1, 2, 0], [200.0, 100.0, 50.0])
    middle = vectors[50:250].mean(0)
    distances = np.linalg.norm(vectors[50:250] - middle, axis=1)
    assert distances[found[0][0] - 50] < np.quantile(distances, 0.05)
    assert chosen("diversity", rows([()] * 350, vectors=vectors), 3) == found


def test_diversity_of_few_different_rows_gives_fewer() -> None:
    of = rows([()] * 40, vectors=np.repeat(np.eye(4, dtype=np.float32), 10, axis=0))
    assert sorted(row for row, *_ in chosen("diversity", of, 6)) == [0, 10, 20, 30]


def test_the_row_outside_all_clouds_is_the_outlier(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([clouds(300, 300), np.array([[0.5, 0.5, 0.7]], np.float32)])
    first, second = chosen("outliers", rows([()] * 601, vectors=vectors), 2)
    assert first[0] == 600
    assert first[1] > 5 * second[1]
    assert first[2] == f"distance {first[1]:.4f} from the nearest cluster"
    monkeypatch.setattr("analysis.selection.clusters.DISTANCES_AT_ONCE", 100)  # blocks of a few rows
    assert chosen("outliers", rows([()] * 601, vectors=vectors), 2) == [first, second]


def test_what_is_drawn_at_random_depends_on_the_seed_alone() -> None:
    of = [rows([()] * 100, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([row for row, *_ in chosen("random", one, 10)] for one in of)
    assert first == again != other


def test_groups_get_their_share_of_the_rows() -> None:
    """Of 7 rows 4 are of group 0, 2 of 1, 1 of 2; five rows are 2.86, 1.43 and 0.71: 3, 1 and 1."""
    groups = [0, 0, 0, 0, 1, 1, 2]
    assert shares_of(Counter(groups), 5) == {0: 3, 1: 1, 2: 1}
    assert shares_of(Counter(groups), 99) == {0: 4, 1: 2, 2: 1}
    candidates = [Candidate(row, score, "") for row, score in enumerate([1, 2, 3, 4, 9, 8, 0])]
    assert [one.row for one in best_of_groups(candidates, groups, 5)] == [4, 3, 2, 1, 6]


def test_groups_keep_little_in_memory_and_the_best() -> None:
    scores = np.random.default_rng(1).random(5000)
    found = best_of_groups((Candidate(row, score, "") for row, score in enumerate(scores)), [0] * 5000, 7)
    assert [one.row for one in found] == np.argsort(-scores)[:7].tolist()


def test_groups_are_the_values_of_a_column() -> None:
    records = ['{"mall": {"name": "A"}}', '{"mall": {"name": 3}}', '{"mall": {}}', '{"mall": {"name": "A"}}']
    groups = Groups.of("mall.name", iter(records))
    assert (groups.names, list(groups.of_rows)) == (("A", "3", "(none)"), [0, 1, 2, 0])
    with pytest.raises(
        UserError, match=r"^-proportional_to x: no such column in the first row; columns there are: mall"
    ):
        Groups.of("x", iter(records))
