"""Packed tasks: what a pack is made of, and how one task of it is found and read.

May import: `mesh`, `mesh.task`, `mesh.broker`.
"""
