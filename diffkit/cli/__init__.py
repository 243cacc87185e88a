"""The ``diffkit`` command: one file per sub-command, found by file name.

A command is a module of `diffkit.cli.commands` whose name does not start with "_", or one that another package names
under the entry-point group ``diffkit.command``. Its docstring is its help, ``SPEC`` says which options it has, and
``run(parsed)`` does the work. Options are fields of attrs classes, helped by their docstrings, just as those of the
parts are; cyclopts parses them. Nothing here imports torch before `run`.
"""
