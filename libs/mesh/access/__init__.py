"""Who asks, and what they may: callers of the HTTP services, and how they are told apart.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.valves`,
`mesh.serving`.
"""
