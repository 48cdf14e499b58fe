"""Several runs together: seeds, two runs compared, a run done again. Does not know retraining."""
