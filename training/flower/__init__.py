"""A federation across machines, on Flower: the same clients, strategies and rounds as in one process."""
