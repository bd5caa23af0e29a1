"""What a steward measures of the mesh as a whole, while metrics are on.

May import: nothing else of `steward`.
"""
