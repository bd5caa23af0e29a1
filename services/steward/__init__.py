"""Does what is nobody's turn: commands to tasks, lane statistics, provisioning checks."""
