"""Every adapter trains end to end: the chain with one window of all layers."""
