"""Muon: orthogonal steps for matrices and convolutions between hidden layers, AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from diffkit.options import choice, flag, integer, number, words
from diffkit.protocols import Optimizer
from diffkit.registry import registry
from diffkit.training.optimizers._torch import moment_rates

if TYPE_CHECKING:
    import torch
    from torch import nn


@registry("optimizer").register("muon")
@frozen
class Muon(Optimizer):
    """Muon: orthogonal steps for matrices and convolutions between hidden layers, AdamW for the rest.

    M <- momentum M + (1 - momentum) G,  U = orthogonal((1 - momentum) G + momentum M),  or of M without nesterov
    W <- W - lr weight_decay W - lr scale U

    orthogonal(M) is near to A B^T, where M = A S B^T is the singular value decomposition: a few Newton-Schulz
    iterations in bfloat16. A convolution (out, in, *kernel) is the matrix (out, in * kernel). AdamW trains vectors,
    embeddings (of `torch.nn.Embedding`, or with "embed" in the name), and the first and the last layer: the first
    convolution, or without any the first matrix that is no embedding's, and the matrices of the network's last module.

    Attributes:
        momentum: Decay rate of the running mean of gradients, in [0, 1).
        nesterov: Orthogonalize the mean as it would be after the same gradient again.
        iterations: Newton-Schulz iterations, >= 1.
        scale: Size of a step of a matrix of r rows and c columns: "adamw" is ``0.2 sqrt(max(r, c))``, about that of
            AdamW, so that learning rate and weight decay of AdamW can be used; "spectral" is ``sqrt(max(1, r / c))``,
            for learning rates near 0.02.
        adamw: Patterns of names of further parameters that AdamW trains, such as "out.*".
        adamw_lr: Learning rate of AdamW's parameters as a multiple of that of the others, > 0.
        betas: Decay rates of AdamW's two running moments, each in [0, 1).
        eps: Added to the root of its second moment, > 0.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, as in `torch.optim.Muon`; "adamw" is Liu et
        al. 2025, arXiv:2502.16982, eq. 4.
    """

    elementwise: ClassVar[bool] = False
    gathers: ClassVar[bool] = True

    momentum: float = number(0.95, ge=0, lt=1)
    nesterov: bool = flag(True)
    iterations: int = integer(5, ge=1)
    scale: str = choice("adamw", ("adamw", "spectral"))
    adamw: tuple[str, ...] = words(())
    adamw_lr: float = number(1.0, gt=0)
    betas: tuple[float, ...] = moment_rates()
    eps: float = number(1e-8, gt=0)

    def build(self, groups: list[dict[str, Any]], network: nn.Module) -> torch.optim.Optimizer:
        """Return one torch optimizer for both; each group is split by which of them trains it."""
        from diffkit.training.optimizers._muon import MuonWithAdamW, hidden_matrices

        hidden = {id(parameter) for parameter in hidden_matrices(network, self.adamw)}
        split = []
        for group in groups:
            for is_muon in (True, False):
                params = [p for p in group["params"] if (id(p) in hidden) is is_muon]
                lr = group["lr"] * (1.0 if is_muon else self.adamw_lr)
                split += [{**group, "params": params, "lr": lr, "muon": is_muon}] if params else []
        return MuonWithAdamW(
            split,
            momentum=self.momentum,
            nesterov=self.nesterov,
            iterations=self.iterations,
            spectral=self.scale == "spectral",
            betas=(float(self.betas[0]), float(self.betas[1])),
            eps=self.eps,
        )
