"""The coordinator's work: which devices take part, which updates are accepted, how they combine."""
