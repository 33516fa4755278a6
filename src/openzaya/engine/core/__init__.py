"""The compiled core: matrix products with quantised weights on an ordinary CPU, in C++ behind a flat C interface.

Free of torch. `docs/core.md` has the picture; `csrc/abi.h` is the whole interface.
"""
