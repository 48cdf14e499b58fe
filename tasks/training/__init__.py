"""Fit an adapter, stop, go on where it stopped, and go faster. Does not know data, registry or inference."""
