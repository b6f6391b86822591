"""Only the head trains, on the hidden states of the frozen model."""
