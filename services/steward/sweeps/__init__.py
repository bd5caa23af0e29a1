"""Sweeps: what was left over goes. Each looks for one kind of thing, and counts what it takes away.

May import: `steward.walks`.
"""
