"""Trigger rules as the broker keeps them: the bucket `triggers`, and schedules.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
