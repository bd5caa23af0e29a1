"""A task's journal, as it is written and read: appending, submission, projection, following, dead letters.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.archive`,
`mesh.admission`.
"""
