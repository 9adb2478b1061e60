"""The engine of `DiagonalFisher`: per-sample squared gradients from one backward pass."""
