"""Accepts or refuses tasks, at once."""
