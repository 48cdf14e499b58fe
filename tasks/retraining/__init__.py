"""A challenger against the champion: gate and approval. Does not know studies."""
