"""Tools as the mesh knows them: what their runners declare, and arguments against that.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
