"""The journal: the events of a task, one type for each.

May import: `contracts`.
"""
