"""The table of what a saved run and the present command do not share."""

from __future__ import annotations

from utils.differences import Difference, difference_table


def test_booleans_are_written_as_the_user_types_them() -> None:
    table = difference_table([Difference("-do_truncate", True, False)]).splitlines()
    assert [line.split() for line in table] == [["what", "checkpoint", "now"], ["-do_truncate", "true", "false"]]
