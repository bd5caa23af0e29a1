"""The wire of taskmesh: names, subjects, messages, streams, errors. No I/O.

`spec/PROTOCOL.md` is normative and outranks this code.
"""

VERSION = "0.1.0"
"""The distribution's version (semantic versioning), as `nats micro ls` shows it."""
