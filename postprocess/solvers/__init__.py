"""Sparse solvers of H(k) c = E S(k) c for large cells."""
