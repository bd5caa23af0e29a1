"""The generated files of the wire: JSON Schemas, and the OpenAPI document.

May import: all of `contracts`. Nothing but `contracts.generate` and tests needs it.
"""
