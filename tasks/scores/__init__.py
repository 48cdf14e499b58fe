"""Metrics and statistics on plain arrays. Knows no Prefect, MLflow, torch, transformers or datasets."""
