"""Backbones, one registered name per file."""
