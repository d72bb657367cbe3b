"""Which of several models is best on the rows to predict. Imports generation and the floors below."""
