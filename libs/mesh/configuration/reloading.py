"""What of a configuration file can be taken over while processes run, and what can't. Pure."""

from __future__ import annotations

from dataclasses import replace

from mesh.configuration.checking import file_mistakes
from mesh.configuration.mesh_toml import Configuration, parse_configuration
from mesh.configuration.settings import Settings

RESTART = "can't change while processes run: start them again with the new file (meshctl restart --rolling)"


def fixed_changes(old: Configuration, new: Configuration) -> list[str]:
    """What differs and can't be taken over, one line each: the key, and what to do.

    A pool is a set of queues that workers pull, an MCP server is a session and a program, and sizes are the broker's.
    A mode of callers that is half taken would let in anybody, or nobody.
    """
    changed: list[str] = []
    for name in sorted({*old.pools} ^ {*new.pools}):
        changed.append(f"{new.source}: pools.{name}: is {'new' if name in new.pools else 'gone'}, which {RESTART}")
    servers = sorted({*old.tools.mcp, *new.tools.mcp})
    for name in servers:
        if old.tools.mcp.get(name) != new.tools.mcp.get(name):
            changed.append(f"{new.source}: mcp.{name}: {RESTART}")
    if old.storage != new.storage:
        changed.append(f"{new.source}: storage: {RESTART}, then meshctl streams apply")
    if old.auth.mode != new.auth.mode:
        changed.append(f"{new.source}: auth.mode: {RESTART}")
    return changed


def read_again(settings: Settings, content: bytes) -> tuple[Settings | None, list[str], list[str]]:
    """These settings with what a file says now, its mistakes, and what can't be taken over.

    The settings are None if there are mistakes. Those of variables that it names are not looked for.
    """
    source = settings.configuration.source
    mistakes = file_mistakes(content, source)
    if mistakes:
        return None, mistakes, []
    configuration = parse_configuration(content, source)
    return replace(settings, configuration=configuration), [], fixed_changes(settings.configuration, configuration)
