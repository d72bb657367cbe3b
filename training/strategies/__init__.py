"""How the processes of a training run share its weights; one class a strategy. May import all floors below training."""
