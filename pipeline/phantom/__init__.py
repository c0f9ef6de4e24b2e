"""A synthetic BraTS cohort: people, heads, tumours, scanners, and the archives they end up in."""
