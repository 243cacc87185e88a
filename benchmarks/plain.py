"""Improved DDPM's arithmetic and its update written plainly, step by step, as the published scripts run them.

Float64 NumPy tables, one look-up for each coefficient and call: table to a tensor, index, cast, broadcast. Written
from the paper (Nichol & Dhariwal 2021, arXiv:2102.09672) for comparison; nothing in diffkit uses it.
"""

from __future__ import annotations

import math

import numpy as np
import torch


class PlainDiffusion:
    """Ancestral and DDIM steps, and the hybrid loss, with eps prediction and learned range."""

    def __init__(self, betas: np.ndarray):
        a = np.cumprod(1 - betas)
        previous = np.append(1.0, a[:-1])
        self.steps = len(betas)
        self.betas, self.a, self.previous = betas, a, previous
        self.variance = betas * (1 - previous) / (1 - a)
        self.log_variance = np.log(np.append(self.variance[1], self.variance[1:]))
        self.c1 = betas * np.sqrt(previous) / (1 - a)
        self.c2 = (1 - previous) * np.sqrt(1 - betas) / (1 - a)

    def at(self, table: np.ndarray, t: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        found = torch.from_numpy(table).to(t.device)[t].float()
        while found.ndim < len(shape):
            found = found[..., None]
        return found.expand(shape)

    def mean_and_variance(self, model, x, t, clip=True):
        out = model(x, t.float() * (1000.0 / self.steps))
        eps, raw = out.chunk(2, 1)
        low = self.at(self.log_variance, t, x.shape)
        high = self.at(np.log(self.betas), t, x.shape)
        share = (raw + 1) / 2
        log_variance = share * high + (1 - share) * low
        x_start = self.at(np.sqrt(1 / self.a), t, x.shape) * x - self.at(np.sqrt(1 / self.a - 1), t, x.shape) * eps
        x_start = x_start.clamp(-1, 1) if clip else x_start
        mean = self.at(self.c1, t, x.shape) * x_start + self.at(self.c2, t, x.shape) * x
        return mean, log_variance, x_start

    def ancestral(self, model, x, t):
        mean, log_variance, _ = self.mean_and_variance(model, x, t)
        noise = torch.randn_like(x)
        mask = (t != 0).float().view(-1, *(1,) * (x.ndim - 1))
        return mean + mask * torch.exp(0.5 * log_variance) * noise

    def ddim(self, model, x, t):
        _, _, x_start = self.mean_and_variance(model, x, t)
        recip, recipm1 = np.sqrt(1 / self.a), np.sqrt(1 / self.a - 1)
        eps = (self.at(recip, t, x.shape) * x - x_start) / self.at(recipm1, t, x.shape)
        a, p = self.at(self.a, t, x.shape), self.at(self.previous, t, x.shape)
        sigma = 0.0 * torch.sqrt((1 - p) / (1 - a)) * torch.sqrt(1 - a / p)
        noise = torch.randn_like(x)
        mask = (t != 0).float().view(-1, *(1,) * (x.ndim - 1))
        return x_start * torch.sqrt(p) + torch.sqrt(1 - p - sigma**2) * eps + mask * sigma * noise

    def loop(self, step, model, x):
        with torch.no_grad():
            for i in reversed(range(self.steps)):
                x = step(model, x, torch.tensor([i] * len(x), device=x.device))
        return x

    def bound(self, model, x, noise):
        """Terms of the bound, (B, T) in bits, cleanest first: a forward pass for each level, from noisy to clean."""
        terms = []
        with torch.no_grad():
            for k in range(self.steps - 1, -1, -1):
                t = torch.tensor([k] * len(x), device=x.device)
                x_t = self.at(self.a**0.5, t, x.shape) * x + self.at((1 - self.a) ** 0.5, t, x.shape) * noise[k]
                true = self.at(self.c1, t, x.shape) * x + self.at(self.c2, t, x.shape) * x_t
                true_log = self.at(self.log_variance, t, x.shape)
                mean, log_variance, _ = self.mean_and_variance(model, x_t, t)
                kl = self.kl(true, true_log, mean, log_variance)
                nll = -self.decoder(x, mean, 0.5 * log_variance)
                both = [v.flatten(1).mean(1) / math.log(2) for v in (kl, nll)]
                terms.append(torch.where(t == 0, both[1], both[0]))
        return torch.stack(terms[::-1], 1)

    def kl(self, true, true_log, mean, log_variance):
        return 0.5 * (
            -1 + log_variance - true_log + (true_log - log_variance).exp()
            + (true - mean) ** 2 * torch.exp(-log_variance)
        )  # fmt: skip

    def simple(self, model, x_start, t, noise):
        x = (
            self.at(np.sqrt(self.a), t, x_start.shape) * x_start
            + self.at(np.sqrt(1 - self.a), t, x_start.shape) * noise
        )
        out = model(x, t.float() * (1000.0 / self.steps))
        return ((noise - out) ** 2).flatten(1).mean(1)

    def hybrid(self, model, x_start, t, noise):
        x = (
            self.at(np.sqrt(self.a), t, x_start.shape) * x_start
            + self.at(np.sqrt(1 - self.a), t, x_start.shape) * noise
        )
        out = model(x, t.float() * (1000.0 / self.steps))
        eps, raw = out.chunk(2, 1)
        frozen = torch.cat([eps.detach(), raw], 1)
        mean, log_variance, _ = self.mean_and_variance(lambda *_: frozen, x, t, clip=False)
        true_mean = self.at(self.c1, t, x.shape) * x_start + self.at(self.c2, t, x.shape) * x
        true_log = self.at(self.log_variance, t, x.shape)
        kl = self.kl(true_mean, true_log, mean, log_variance).flatten(1).mean(1) / math.log(2)
        nll = -self.decoder(x_start, mean, 0.5 * log_variance).flatten(1).mean(1) / math.log(2)
        vb = torch.where(t == 0, nll, kl)
        return ((noise - eps) ** 2).flatten(1).mean(1) + vb * (self.steps / 1000)

    def decoder(self, x, mean, log_std):
        centred, inverse = x - mean, torch.exp(-log_std)

        def cdf(z):
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        upper, lower = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
        inside = (upper - lower).clamp(min=1e-12).log()
        below, above = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
        return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


class PlainTraining:
    """One update: NumPy draws, a norm read back for each parameter, loops over parameters for optimizer and average.

    In half precision the loss is scaled, and every gradient is asked whether it is finite. The published scripts keep
    half-precision weights and copy float32 ones into them; here autocast casts them, which moves as many bytes.
    """

    def __init__(self, diffusion, network: torch.nn.Module, *, half: bool = False):
        self.diffusion, self.network, self.half = diffusion, network, half  # PlainDiffusion, or one with its methods
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0, foreach=False)
        self.generator = np.random.default_rng(0)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.rate, self.log_scale = 0.9999, 20.0

    def model(self, x, time):
        with torch.autocast(x.device.type, torch.float16, enabled=self.half):
            return self.network(x, time).float()

    def update(self, x_start: torch.Tensor) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.detach_()
                parameter.grad.zero_()
        chosen = self.generator.choice(self.diffusion.steps, size=(len(x_start),))
        t = torch.from_numpy(chosen).long().to(x_start.device)
        losses = self.diffusion.hybrid(self.model, x_start, t, torch.randn_like(x_start))
        scale = 2**self.log_scale if self.half else 1
        (losses.mean() * scale).backward()
        for level, loss in zip(t.cpu().numpy(), losses.detach().cpu().numpy(), strict=True):
            _ = int(4 * level / self.diffusion.steps), float(loss)  # the log's quartiles
        if self.half and not self.finite(scale):
            return
        _ = sum((p.grad**2).sum().item() for p in self.parameters) ** 0.5
        self.optimizer.step()
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.detach().mul_(self.rate).add_(parameter.detach(), alpha=1 - self.rate)

    def finite(self, scale: float) -> bool:
        """Whether all gradients are; take the scale from them, and choose the next."""
        if not all(bool(p.grad.isfinite().all()) for p in self.parameters):
            self.log_scale -= 1
            return False
        for parameter in self.parameters:
            parameter.grad.mul_(1 / scale)
        self.log_scale += 1e-3
        return True
