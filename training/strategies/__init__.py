"""How the processes of a training run share its weights; one class a strategy. Imports training and floors below."""
