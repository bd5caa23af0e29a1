"""The doctor's judgements: facts go in, lines with a remedy come out.

May import: `meshctl`.
"""
