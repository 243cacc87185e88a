"""Codecs, one registered name per file."""
