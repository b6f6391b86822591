"""Texts through a model that is on disk: batches, hidden states between layers, one layer in memory at a time."""
