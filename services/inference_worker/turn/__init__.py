"""One model turn: its conversation, its attempts, the calls it asks for, and its end.

May import: `inference_worker.models`, `inference_worker.dialects`.
"""
