"""JSON lines: an object a line with `text` and `label`."""

from __future__ import annotations

from task_utils import Task, register

register(
    Task("jsonlines", "JSON lines, from `text` to `label`, as they stand", source_column="text", target_column="label")
)
