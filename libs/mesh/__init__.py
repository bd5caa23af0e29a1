"""The runtime that every service stands on: connection, journal, work, projection, submission, following."""
