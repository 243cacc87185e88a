"""Adapters, one registered name per file."""
