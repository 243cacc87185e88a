"""Arithmetic of diffkit's networks in fewer passes over memory; diffkit finds it by entry point."""
