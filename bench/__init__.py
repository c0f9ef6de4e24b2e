"""Benchmarks: ratios measured within one run, never seconds of one machine against another's."""
