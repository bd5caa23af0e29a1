"""The processes, queues and models of a mesh as one process sees them, and what is not well with them.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.valves`.
"""
