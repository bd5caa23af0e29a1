"""The configuration of a process: its variables, and the tables of mesh.toml.

Read once at the start, and frozen.

May import: `mesh`.
"""
