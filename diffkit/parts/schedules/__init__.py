"""Noise schedules, one registered name per file."""
