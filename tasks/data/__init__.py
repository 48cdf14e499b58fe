"""Rows: labelled, split, checked for leakage, tokenized. Does not know training, registry, inference or servers."""
