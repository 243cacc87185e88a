"""Mean parameterizations, one registered name per file."""
