"""Steps: a step's life from its delivery to the answer, and how its message waits. `mesh.broker` pulls the messages.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.archive`,
`mesh.admission`, `mesh.journal`, `mesh.providers`, `mesh.rules`, `mesh.tools`, `mesh.serving`.
"""
