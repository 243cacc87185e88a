"""Guidance: what steers sampling besides the backbone."""
