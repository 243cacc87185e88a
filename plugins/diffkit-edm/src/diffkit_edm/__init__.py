"""EDM as parts of diffkit: "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364."""

from diffkit_edm.heun import EDMHeun as EDMHeun
from diffkit_edm.karras import EDMKarras as EDMKarras
from diffkit_edm.lognormal import EDMLogNormal as EDMLogNormal
from diffkit_edm.loss import EDMLoss as EDMLoss
from diffkit_edm.preconditioning import EDM as EDM
from diffkit_edm.stochastic import EDMStochastic as EDMStochastic

__all__ = ["EDM", "EDMHeun", "EDMKarras", "EDMLogNormal", "EDMLoss", "EDMStochastic"]
