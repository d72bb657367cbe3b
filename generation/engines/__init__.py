"""What decodes a batch: our own search, or CTranslate2."""
