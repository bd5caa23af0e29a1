"""The ledger: what tokens were used, and what they cost, by tenant, day, provider, model and pool.

May import: `mesh`, `mesh.configuration`, `mesh.task`, `mesh.broker`, `mesh.archive`.
"""
