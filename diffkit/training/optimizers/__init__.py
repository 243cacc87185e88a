"""Optimizers, one file each: frozen options, and how a torch optimizer is built from them."""
