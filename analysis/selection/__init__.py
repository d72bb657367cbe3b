"""Which rows to label next: strategies, and what is written of the rows. Imports generation and the floors below."""
