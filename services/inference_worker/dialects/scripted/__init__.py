"""The scripted model: deterministic, and without a network.

May import: `inference_worker.models`.
"""
