"""Schedules of the learning rate, one file each: a factor for every update of a run."""
