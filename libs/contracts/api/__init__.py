"""What clients send and receive over HTTP: inputs, dead letters, server-sent events.

May import: `contracts`, `contracts.journal`, `contracts.messages`, `contracts.records`.
"""
