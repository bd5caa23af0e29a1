"""The runtime that every service stands on.

Its packages, from the ground up: `configuration` and `task`; `broker` and `telemetry`; `archive`; `journal`,
`providers`, `rules`, `tools` and `serving`; `steps`. Each says in its docstring what lives there and what it may
import. The modules on top (`errors`, `clock`, `faults`, `background`, `loop_health`, `retry_after`) are below all of
them, and import none.
"""
