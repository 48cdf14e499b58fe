"""MLflow, behind a journal that outlives its outages. No other wing speaks to it."""
