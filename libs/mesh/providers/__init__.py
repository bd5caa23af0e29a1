"""Model providers as the fleet knows them: circuit breakers, their rules and their records.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`.
"""
