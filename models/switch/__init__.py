"""T5 with switch layers: a mixture of experts of our own. Imports utils, and what it is built of in transformers."""
