"""Files, processes, progress, images, eval mode: what knows nothing of diffusion."""
