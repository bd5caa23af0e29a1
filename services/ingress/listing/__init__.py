"""An index of tasks and dead letters, for lists: by tenant, status, metadata and time, each page at the same cost.

The truth stays in the broker. The index is a file that follows three of its streams, may be thrown away at any time,
and is built anew then (ADR-17).

May import: nothing else of `ingress`.
"""
