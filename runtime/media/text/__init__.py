"""A prompt to embeddings: tokens, the encoder's layers, the cache of results."""
