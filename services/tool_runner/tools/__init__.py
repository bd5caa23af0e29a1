"""The tools that come along, one module for each.

May import: `tool_runner`.
"""
