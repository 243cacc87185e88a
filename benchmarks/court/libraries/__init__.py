"""A file for each library: ``entries()`` yields its solvers, ``DISTRIBUTION`` is the name of its distribution."""
