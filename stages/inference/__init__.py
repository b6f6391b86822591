"""The whole chain on texts: likelihoods, generation, metrics."""
