"""The chain of the paper (ChainFed): a window of layers slides from a start layer to the last."""
