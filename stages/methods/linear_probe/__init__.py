"""The head alone trains, on the hidden states of the frozen model."""
