"""Segmentation networks, one file or folder each."""
