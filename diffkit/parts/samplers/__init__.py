"""Samplers, one registered name per file."""
