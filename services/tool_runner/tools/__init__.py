"""The tools that come along, one module for each.

May import: nothing else of `tool_runner`.
"""
