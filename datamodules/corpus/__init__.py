"""Raw text to token shards, and the order in which they are read. Imports readers, encoding and the floors below."""
