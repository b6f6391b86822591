"""Published benchmarks: their files, their questions, their scores.  Knows neither models nor torch."""
