"""Capacity: how many turns at once the servers bear, what a worker so takes, and which of its pools get the places.

May import: `inference_worker.models`.
"""
