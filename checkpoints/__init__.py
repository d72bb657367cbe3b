"""What lies on the disk: run folders, checkpoints, model folders. Imports task_utils and below; no datamodules."""
