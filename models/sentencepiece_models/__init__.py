"""SentencePiece models as tokenizers of `transformers`, and back. Imports utils."""
