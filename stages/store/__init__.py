"""Artifacts on disk: complete or absent, hashed, named by digest.  numpy and the standard library only."""
