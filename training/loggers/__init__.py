"""Where a run's curves are shown, a file each: TensorBoard, W&B, MLflow, Trackio, CSV. Imports what training/ may."""
