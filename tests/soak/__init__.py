"""A mesh under load for twenty minutes, whose processes are killed at random, and what it costs at the end."""
