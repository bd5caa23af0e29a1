"""Tasks as lines of JSON: out of a mesh, hot and packed alike, and into one.

May import: `meshctl`.
"""
