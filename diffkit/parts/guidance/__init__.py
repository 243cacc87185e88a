"""Guidance, one registered name per file."""
