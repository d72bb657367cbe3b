"""What decodes a batch: our own search, or CTranslate2. Imports generation and the floors below."""
