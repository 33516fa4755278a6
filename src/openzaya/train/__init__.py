"""Training a ZAYA from random weights on one machine."""
