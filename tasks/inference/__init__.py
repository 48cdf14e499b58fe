"""Label a file with an adapter, in one process or several, and export it for other tools."""
