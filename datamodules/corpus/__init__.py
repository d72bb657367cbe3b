"""Raw text to token shards, and the order they are read in. Imports readers, encoding, objectives and floors below."""
