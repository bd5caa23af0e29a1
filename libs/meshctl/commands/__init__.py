"""One module for each command of `meshctl`: its flags, and what it does.

May import: `meshctl`, `meshctl.diagnosis`, `meshctl.supervision`, `meshctl.transfer`, `meshctl.display`.
"""
