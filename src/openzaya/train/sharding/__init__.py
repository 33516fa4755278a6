"""Training on many ranks, put around a model that is written for one device."""
