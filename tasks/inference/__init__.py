"""Label a file with an adapter, and export it for other tools."""
