"""The archive as the steward keeps it: ended tasks are packed, packs that are old enough go.

May import: `steward.walks`.
"""
