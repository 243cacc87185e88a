"""Digits drawn by their names as texts: how many of them are read as the text says.

    python -m benchmarks.digits.texts             # some minutes on one core
    python -m benchmarks.digits.texts --draw      # measure nothing: write the page of what is there

The network is the demo's with a context in place of labels, trained on one CPU thread. A word is a vector by its hash;
most texts are one word, two have more. `results/texts.json` has every figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffkit
from benchmarks.digits.cases import DRAWN, Digits, labels_for, quality_of
from diffkit.demo import COMPOSITION, TRAINING

RESULTS = Path(__file__).parent / "results"
UPDATES, BATCH_SIZE, STEPS, WIDTH = 1500, 64, 50, 32
SCALES = (None, 1.5)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEXTS = {str(i): name for i, name in enumerate(NAMES)} | {"3": "digit three", "8": "the digit eight"}


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    path = RESULTS / "texts.json"
    if parser.parse_args().draw:
        found = json.loads(path.read_text())
    else:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            system = trained(Path(folder) / "run", UPDATES)
            found = {"updates": UPDATES, "cpu_seconds": round(time.process_time() - begun, 1)}
        found["rows"] = [{"scale": scale} | measured(system, scale) for scale in SCALES]
        found["versions"] = {"torch": torch.__version__, "diffkit": diffkit.__version__}
        found["processor"] = platform.machine()
        path.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "texts.md").write_text(report(found))


def encode(texts: list[str]) -> list[Tensor]:
    """Vectors of texts, one for each word, (L, WIDTH) each."""
    return [torch.stack([_word(each) for each in text.split()]) for text in texts]


def _word(text: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def trained(folder: Path, updates: int) -> diffkit.System:
    """The network after some updates; the learning rate falls to zero over them."""
    data = diffkit.data.Encoded(diffkit.data.load("digits", split="train"), encode, TEXTS)
    options = {k: v for k, v in COMPOSITION["backbone"][1].items() if k not in ("num_classes", "null_class")}
    torch.manual_seed(0)
    system = diffkit.compose(**{**COMPOSITION, "backbone": ("unet", options | {"context": data.width})})
    training = {**TRAINING, "batch_size": BATCH_SIZE, "ema": (0.99,), "save_every": updates}
    return diffkit.train(system, data, out=folder, steps=updates, seed=0, progress=False, **training)


def measured(system: diffkit.System, scale: float | None, count: int = DRAWN, steps: int = STEPS) -> dict[str, float]:
    """Figures of samples, as many of each text, padded to the longest with a mask."""
    labels, vectors = labels_for(count), encode([TEXTS[str(i)] for i in range(len(NAMES))])
    padded = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(each) for each in vectors])[:, None]
    guidance = None if scale is None else ("cfg", {"scale": scale})
    prompts = {"context": padded[labels], "context_mask": mask[labels]}
    images = system.sample(count, steps=steps, seed=0, guidance=guidance, progress=False, **prompts)
    return quality_of(Digits.of("train"))(images, labels)


_INTRODUCTION = """\
# Digits by their names as texts

The demo's network with a context in place of labels, after {updates:,} updates of {batch_size} examples, one run
({cpu_seconds:.0f} CPU seconds, seed 0); {drawn} samples of {steps} steps, as many of each text. Accuracy: the
share that a classifier trained on real digits reads as the digit that the text names. Distance: Frechet's, between
features of a second classifier, from the digits trained on. Made by `python -m benchmarks.digits.texts` (torch {torch},
{processor}, one thread); `texts.json` has every figure.

| guidance | accuracy | distance |
| --- | --- | --- |
"""


def report(found: dict[str, Any]) -> str:
    """The page: a line for each scale of guidance."""
    rows = [_INTRODUCTION.format(**found | found["versions"], batch_size=BATCH_SIZE, drawn=DRAWN, steps=STEPS)]
    for row in found["rows"]:
        name = "none" if row["scale"] is None else f"scale {row['scale']:g}"
        rows.append(f"| {name} | {row['recognised']:.1%} | {row['distance']:.2f} |\n")
    return "".join(rows)


if __name__ == "__main__":
    main()
