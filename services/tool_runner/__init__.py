"""Runs one tool call for each work message."""
