"""Decoders, one registered name per file."""
