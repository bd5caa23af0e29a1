"""Does what is nobody's turn: lane statistics, provisioning checks."""
