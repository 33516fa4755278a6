"""The whole state of a run on many ranks, on disk: asynchronous, atomic, verified, without pickle."""
