"""How fast this machine runs a ZAYA: every figure a ratio to something measured in the same run.

`docs/bench.md` has the picture. `decode` and `rollouts` measure, `synthetic` makes checkpoints of random weights in a
given shape, so that speed can be known without a download.
"""
