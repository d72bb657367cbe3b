"""Reviews: their keywords, sentiments, and the words that decide them. Imports generation and the floors below."""
