"""What every service process does: start, serve HTTP, beat its heart, make requests of its own.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.valves`.
"""
