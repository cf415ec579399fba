"""Spin textures: directions of the moments of a large magnet, and their topological charge.

All functions are pure: they take positions or fractions of lattice vectors and return unit vectors (n, 3).
"""
