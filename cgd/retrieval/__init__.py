"""Whitening, search and metrics on plain arrays."""
