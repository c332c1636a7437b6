"""Train the small U-Net of the how-to page, and write ``docs/howto/unet.onnx``.

``python docs/figures/train_unet.py`` needs torch and onnx, which nothing else here does, and takes
a few minutes on two cores.  The scenes it learns from are made by ``scenes.py``, which the page
writes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

DOCS = Path(__file__).parents[1]
PAGE, OUT = DOCS / "howto" / "unet.md", DOCS / "howto" / "unet.onnx"
sys.path.insert(0, str(DOCS / "_ext"))

from blocks import parse  # noqa: E402  # it lies beside the Sphinx extension


def scenes() -> ModuleType:
    """The module that the page writes."""
    code = next(block.code for block in parse(PAGE) if block.value == "scenes.py")
    module = ModuleType("scenes")
    exec(code, module.__dict__)
    return module


def pair(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Three levels of 8, 16 and 24 channels; (n, 2, h, w) -> (n, h, w), probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = pair(2, 8), pair(8, 16), pair(16, 24)
        self.up2, self.up1 = pair(24 + 16, 16), pair(16 + 8, 8)
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        wide = nn.functional.interpolate
        b = self.up2(torch.cat([wide(c, scale_factor=2.0), b], 1))
        a = self.up1(torch.cat([wide(b, scale_factor=2.0), a], 1))
        return torch.sigmoid(self.last(a))[:, 0]


def main(steps: int = 600) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = [scenes().make(seed, 512) for seed in range(100, 108)]
    rng = np.random.default_rng(0)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        crops, truths = [], []
        for _ in range(8):
            bands, water = made[rng.integers(len(made))]
            y, x = rng.integers(0, 512 - 128, 2)
            crops.append(bands[:, y : y + 128, x : x + 128])
            truths.append(water[y : y + 128, x : x + 128])
        found = model(torch.from_numpy(np.stack(crops)))
        loss = nn.functional.binary_cross_entropy(found, torch.from_numpy(np.stack(truths)).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(step + 1, loss.item())
    axes = {"patches": {0: "n", 2: "h", 3: "w"}, "water": {0: "n", 1: "h", 2: "w"}}
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 2, 128, 128),),
        str(OUT),
        input_names=["patches"],
        output_names=["water"],
        dynamic_axes=axes,
        dynamo=False,
    )
    print(OUT.stat().st_size, "bytes,", sum(p.numel() for p in model.parameters()), "weights")


if __name__ == "__main__":
    main()
