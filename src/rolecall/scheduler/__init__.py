"""Placing guards and running workers through them. A backend places guards and nothing else."""
