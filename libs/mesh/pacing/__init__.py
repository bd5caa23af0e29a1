"""The pace of model providers: how fast all workers together may call each, and who may begin a turn now.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
