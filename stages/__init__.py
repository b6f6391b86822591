"""The work: everything that computes.  Stages meet on disk and never import each other."""
