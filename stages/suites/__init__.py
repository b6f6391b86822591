"""Published benchmarks: their files, their questions, their scores.  No model is known here, and no torch."""
