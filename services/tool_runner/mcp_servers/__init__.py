"""MCP servers: sessions with them, and their tools as tools of the mesh.

The one place that imports `mcp`.

May import: `tool_runner.tools`.
"""
