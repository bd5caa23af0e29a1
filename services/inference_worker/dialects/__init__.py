"""The dialects of model servers: one folder for each wire, and what they share.

May import: `inference_worker.models`.
"""
