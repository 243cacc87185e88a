"""Quality and likelihood against the number of steps, on handwritten digits: ``python -m benchmarks.digits``.

One network, the demo's (Improved DDPM: cosine schedule, learned variance, hybrid loss, 100 levels), and what is made of
it: every sampler, every variance, evenly spaced levels and those with the best bound.
"""
