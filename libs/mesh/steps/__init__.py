"""Steps: which message is pulled when, and a step's life from its claim to its ack.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.journal`,
`mesh.providers`, `mesh.rules`, `mesh.tools`, `mesh.serving`.
"""
