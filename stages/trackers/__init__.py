"""Experiment trackers: where researchers look at the metrics of their runs."""
