"""Texts and labels: loading, splitting, encoding.  What a text says never leaves this package in an error."""
