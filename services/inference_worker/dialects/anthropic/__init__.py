"""Anthropic's Messages API.

May import: `inference_worker.models`, `inference_worker.dialects`.
"""
