"""The parts: one file each, by kind. Each file's name is the name the part goes by."""
