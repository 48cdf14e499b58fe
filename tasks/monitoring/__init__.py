"""A model in use: have inputs and answers drifted from its own rows? Does not know retraining and studies."""
