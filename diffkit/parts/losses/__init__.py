"""Losses, one registered name per file."""
