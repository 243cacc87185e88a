"""Readers of other libraries' models for `diffkit.adopt`, a file for each; none is imported before it is used."""
