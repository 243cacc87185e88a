"""Parts at work together: compose, train, sample, score, save and load."""
