"""Trigger rules: the language of their conditions, the templates of their tasks, and the rules themselves.

May import: `contracts`, `contracts.journal`, `contracts.records`.
"""
