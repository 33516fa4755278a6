"""What ZAYA1 is: configuration, forward, caches, checkpoints. One concept a file; see docs/model.md."""
