"""Models as turns see them: what goes into one, what comes out, which ones a turn may go to, and their breakers.

May import: nothing else of `inference_worker`.
"""
