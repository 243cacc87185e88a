"""How accurate every sampler is on every kind of path, with every mean: ``python -m benchmarks.solvers``.

Data is a mixture of two normals on a line, so the network, the solution of the probability-flow ODE and the moments of
what should come out are exact: what is left is the sampler's own error.
"""
