"""Golden journals: what a version really wrote, kept for all later ones. `python -m tests.golden FOLDER` records.

Each version records its own folder once, before it is released, and nobody changes one that is there.
"""
