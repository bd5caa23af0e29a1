"""Runs one model turn for each work message."""
