"""How cost grows with resolution, channels, levels, batch and processes; `python -m benchmarks.growth`."""
