"""From files to token ids to batches. Imports task_utils and the floors below it."""
