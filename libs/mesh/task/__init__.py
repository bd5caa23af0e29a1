"""A task as its journal tells it: the state, and every decision that follows from it.

Pure: no await, no clock, no client.

May import: `mesh`.
"""
