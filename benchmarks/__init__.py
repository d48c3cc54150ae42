"""Ratios against a baseline of the same run; see `make bench`."""
