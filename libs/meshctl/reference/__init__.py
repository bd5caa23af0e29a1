"""The reference pages of docs/reference, rendered from the declarations of settings and tables.

May import: `meshctl`.
"""
