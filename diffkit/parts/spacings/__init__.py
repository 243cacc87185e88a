"""Spacings, one registered name per file."""
