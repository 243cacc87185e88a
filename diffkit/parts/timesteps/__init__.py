"""Timestep samplers, one registered name per file."""
