"""Experiments on top of training: several seeds, and grids of choices."""
