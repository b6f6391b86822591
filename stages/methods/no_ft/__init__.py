"""Nothing trains: the base model with a fresh head, the baseline for every other method."""
