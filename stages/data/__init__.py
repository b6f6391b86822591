"""Texts and labels: loading, splitting, encoding.  The contents of a text never appear in an error."""
