"""Messages that wait in streams: work, commands to tasks, and the notifications made from milestones.

May import: `contracts`, `contracts.journal`, `contracts.records`.
"""
