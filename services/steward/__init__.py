"""Does what is nobody's turn: commands to tasks, timers, triggers, webhooks, the critic, stranded messages, retention.

It also writes lane statistics, and watches that streams are as declared.
"""
