"""One module for each command of `meshctl`: its flags, and what it does.

May import: all of `meshctl`.
"""
