"""Files, processes, progress, images, eval mode: code that does not depend on diffusion."""
