"""Logs, traces and metrics.

May import: `mesh`, `mesh.configuration`.
"""
