"""Walks: long ways along a stream that stewards share, piece by piece.

May import: nothing else of `steward`.
"""
