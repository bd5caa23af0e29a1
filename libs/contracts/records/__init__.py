"""Records in key-value buckets: how a task stands, what a tool declares, a provider's breaker, a worker's heartbeat.

May import: `contracts`, `contracts.journal`.
"""
