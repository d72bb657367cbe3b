"""Any pair of columns, as they stand: the task for one's own data."""

from __future__ import annotations

from task_utils import Task, register

register(Task("seq2seq", "free text to free text: the first column to the second", source_column=1, target_column=2))
