"""The wire of taskmesh: names, subjects, messages, streams, errors. No I/O.

Subjects, streams, headers, identifiers, errors and the task request are modules on top. What is written to a journal is
in `journal`, what waits in queues in `messages`, what lies in buckets in `records`, what goes over HTTP in `api`, rules
in `triggers`, and what is rendered from all of it in `generation`.

`spec/PROTOCOL.md` is normative and outranks this code.
"""

VERSION = "0.2.0"
"""The distribution's version (semantic versioning), as `nats micro ls` shows it."""
