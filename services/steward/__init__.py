"""Does what is nobody's turn: commands to tasks, retention, lane statistics, provisioning checks."""
