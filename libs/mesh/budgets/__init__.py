"""Budgets of tenants: what they have left in a minute, a day and a month, and who may still use some of it.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.telemetry`, `mesh.admission`, `mesh.ledger`,
`mesh.serving`.
"""
