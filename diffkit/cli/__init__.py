"""The ``diffkit`` command: one file per sub-command, found by file name.

A command is a module of this folder whose name does not start with "_". Its first docstring line is its help, and it
has two functions: ``takes()`` says which options it has, ``run(given)`` does the work. Options are fields of attrs
classes, helped by their docstrings, just as those of the parts are. Nothing here imports torch before `run`.
"""
