"""OpenAI-compatible chat completions.

May import: `inference_worker.models`, `inference_worker.dialects`.
"""
