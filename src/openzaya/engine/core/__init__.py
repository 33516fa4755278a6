"""The compiled core: the model's steps with quantised weights on an ordinary CPU, in C++ behind a flat C interface.

`docs/core.md` has the picture; `csrc/abi.h` is the whole interface. `products` and what it stands on are free of torch.
"""
