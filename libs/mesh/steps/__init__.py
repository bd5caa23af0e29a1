"""Steps: which message is pulled when, and a step's life from its claim to its ack.

May import: all of `mesh`.
"""
