"""What a run folder says: one reading of its artifacts, for whoever shows or sends it."""
