"""A mesh of this machine: its home, its broker, its processes, from start to stop.

May import: `meshctl`.
"""
