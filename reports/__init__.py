"""Pages that a person looks at: reports of trainings and predictions. Imports metrics and the floors below."""
