"""Filters of subjects, as NATS reads `*` and `>`: what they take, and what two of them have in common."""

from __future__ import annotations


def matches(subject_filter: str, subject: str) -> bool:
    """Whether a filter with wildcards takes a subject."""
    return overlap(subject_filter, subject)


def overlap(one: str, other: str) -> bool:
    """Whether there is a subject that both filters take, as NATS reads `*` and `>`."""
    ours, theirs = one.split("."), other.split(".")
    for mine, its in zip(ours, theirs, strict=False):
        if ">" in (mine, its):
            return True
        if "*" not in (mine, its) and mine != its:
            return False
    # One is longer: a tail `>` stands for one token at least, and would have been met above.
    return len(ours) == len(theirs)


def within(one: str, other: str) -> bool:
    """Whether a filter takes only what another one takes, too, as NATS reads `*` and `>`."""
    ours, theirs = one.split("."), other.split(".")
    for mine, its in zip(ours, theirs, strict=False):
        if its == ">":
            return True
        if mine == ">" or its not in ("*", mine):
            return False
    return len(ours) == len(theirs)
