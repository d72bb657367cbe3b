"""What decodes a batch: our own search, CTranslate2 or ONNX Runtime. Imports generation and the floors below."""
