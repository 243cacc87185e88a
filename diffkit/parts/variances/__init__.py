"""Variance parameterizations, one registered name per file."""
