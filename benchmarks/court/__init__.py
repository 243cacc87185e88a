"""The solvers of many libraries before the same laws: python -m benchmarks.court."""
