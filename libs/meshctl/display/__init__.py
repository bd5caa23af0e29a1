"""What people see: tables, texts, a live screen; JSON lines where the output is a pipe.

May import: `meshctl`, `meshctl.diagnosis`.
"""
