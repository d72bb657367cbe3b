"""A dataset saved with `save_to_disk`, or one of the hub, with the columns `text` and `label`."""

from __future__ import annotations

from task_utils import Task, register

register(
    Task(
        "hfdataset",
        "a saved or hub dataset, from `text` to `label`, as they stand",
        source_column="text",
        target_column="label",
    )
)
