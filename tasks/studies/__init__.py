"""Several runs together: seeds, a learning curve, two runs compared, a run done again. Does not know retraining."""
