"""Training of tokenizers: sampled lines -> pieces -> a folder that `transformers` loads. Imports the floors below."""
