"""The operator's command.

One module for each command is in `commands`. `supervision` runs a mesh on this machine, `diagnosis` judges one for the
doctor, `display` shows things to people.
"""
