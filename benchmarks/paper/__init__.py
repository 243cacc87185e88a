"""The claims of Improved DDPM (Nichol & Dhariwal 2021, arXiv:2102.09672) at a size anyone can repeat.

    python -m benchmarks.paper                 # small networks, two CPU cores
    python -m benchmarks.paper --size large --device cuda

Every network and every measurement is a cell that is kept on disk, so a stop loses nothing: the same command again goes
on where it was. The table and its figures are written to benchmarks/paper/results.
"""
