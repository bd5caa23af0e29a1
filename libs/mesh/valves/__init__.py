"""Valves: what people have paused or limited for a while, as each process knows it, and how it is changed.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
