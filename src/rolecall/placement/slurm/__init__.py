"""Slurm: one job for each role, in it one guard on each node."""
