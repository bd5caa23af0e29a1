"""Admission: who goes from the backlog into TASKS, and when, so that tenants take turns by what their tasks cost.

May import: nothing else of `steward`.
"""
