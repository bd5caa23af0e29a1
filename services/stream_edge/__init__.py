"""Turns journals into resumable Server-Sent Events."""
