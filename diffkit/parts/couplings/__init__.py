"""Couplings, one registered name per file."""
