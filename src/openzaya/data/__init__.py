"""Training data: problems to token sequences, aggregation examples from rollouts, packing into rows."""
