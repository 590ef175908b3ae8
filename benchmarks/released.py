"""The loader that VideoMAE and its forks released, re-created from its description.

decord, PIL and a torch DataLoader that hands over normalised float32 clips `[B, 3, T, H, W]`, as in
VideoMAE (arXiv 2203.12602) and EVEREST (arXiv 2211.10636). Needs requirements-peers.txt.
"""

import random
from collections.abc import Iterator, Sequence

import decord
import numpy as np
import torch
from PIL import Image

from benchmarks.torch_models import MEAN, STD


class Samples(torch.utils.data.Dataset[torch.Tensor]):
    """Clips of these files for pre-training, over and over."""

    def __init__(self, paths: Sequence[str], num_frames: int, stride: int, size: int):
        self.paths, self.size = paths, size
        self.num_frames, self.stride = num_frames, stride

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> torch.Tensor:
        reader = decord.VideoReader(self.paths[index % len(self.paths)], num_threads=1)
        spare = len(reader) - (self.num_frames - 1) * self.stride - 1
        start = random.randint(0, max(spare, 0))
        numbers = (start + self.stride * np.arange(self.num_frames)).clip(max=len(reader) - 1)
        frames = reader.get_batch(numbers.tolist()).asnumpy()
        # One of four sizes of crop, anywhere, resized frame by frame in PIL.
        short = min(frames.shape[1:3])
        h, w = (int(short * random.choice((1, 0.875, 0.75, 0.66))) for _ in range(2))
        y, x = (random.randint(0, n - m) for n, m in zip(frames.shape[1:3], (h, w)))
        images = [Image.fromarray(frame).crop((x, y, x + w, y + h)) for frame in frames]
        images = [im.resize((self.size, self.size), Image.Resampling.BILINEAR) for im in images]
        clip = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        clip = clip.permute(3, 0, 1, 2).contiguous().float().div(255)  # [3, T, H, W]
        mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, STD))
        return clip.sub_(mean).div_(std)


def batches(samples: Samples, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Batches of `workers` processes that decode."""
    loader = torch.utils.data.DataLoader(
        samples,
        batch_size,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork",  # As where the released code runs.
    )
    return iter(loader)
