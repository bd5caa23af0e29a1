"""Two tools as an MCP server over stdio: one finds a supplier, the other orders. Every order is a line of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

ORDERS_FILE = Path(os.environ.get("ORDERS_FILE", "purchase_orders.jsonl"))
SUPPLIERS = {"widget-7": "Widgets & Sons"}

server = MCPServer("purchasing", log_level="WARNING")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def find_supplier(sku: str) -> str:
    """Says who sells an article."""
    return SUPPLIERS.get(sku, "Everything Ltd")


@server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False))
def purchase_order(sku: str, quantity: int, supplier: str) -> str:
    """Orders an article. It costs money, and can't be taken back."""
    with ORDERS_FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"sku": sku, "quantity": quantity, "supplier": supplier}) + "\n")
    return f"ordered {quantity} of {sku} from {supplier}"


if __name__ == "__main__":
    server.run("stdio")
