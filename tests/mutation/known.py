"""Mutants that are known to get through, each with the point of the issue that it waits for."""

KNOWN: dict[tuple[str, str], str] = {}
"""Mutant and command; a test fails as soon as one of them does not get through any more."""
