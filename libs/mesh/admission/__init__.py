"""Admission: what a task is thought to cost, which lane it gets, and whether it goes by the backlog.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
