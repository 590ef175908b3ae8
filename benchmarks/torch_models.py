"""The released PyTorch models, re-created from their description, to compare ours with.

They compute as those do: every token is embedded before the mask is applied, all targets are
normalised before those wanted are picked, attention is written out, blocks follow one another.
Parameters have the official names. VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636).
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Shape(NamedTuple):
    """What a model is made of."""

    grid: tuple[int, int, int]
    tubelet: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    hidden: int
    """Of the MLPs."""
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    everest: bool
    """Whether the model chooses tokens by their motion."""
    num_visible: int
    num_target: int


def sinusoid(shape: Shape, width: int) -> Tensor:
    """Fixed positions `[1, N, D]` over the flattened token index."""
    rate = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    angle = np.arange(math.prod(shape.grid))[:, None] * rate
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return torch.from_numpy(angle).float()[None]


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values; keys have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def by_motion(tokens: Tensor, shape: Shape) -> Tensor:
    """EVEREST's tokens `[B, K]`: those furthest from the token before them in time come first."""
    with torch.no_grad():
        slots = tokens.detach().clone().unflatten(1, (shape.grid[0], -1))
        distance = torch.norm(slots[:, 1:] - slots[:, :-1], p=2, dim=-1)
        score = torch.cat((distance[:, :1], distance), dim=1).flatten(1)
    return score.argsort(dim=1, descending=True)[:, : shape.num_visible + shape.num_target]


def chosen(index: Tensor, num_tokens: int) -> Tensor:
    """True at each clip's indices `[B, K]`; `[B, N]`."""
    return torch.zeros(index.shape[0], num_tokens, dtype=torch.bool).scatter_(1, index, True)


def pick(x: Tensor, where: Tensor) -> Tensor:
    """Tokens of each clip where it is True, in their order."""
    return x[where].reshape(x.shape[0], -1, x.shape[-1])


class Encoder(nn.Module):
    """Embedding, blocks and norm; EVEREST's masks are made in here."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        conv = nn.Conv3d(3, shape.width, shape.tubelet, shape.tubelet)
        self.patch_embed = nn.ModuleDict({"proj": conv})
        self.positions = sinusoid(shape, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.hidden) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, video: Tensor, mask: Any) -> tuple[Tensor, Any]:
        """Encoded visible tokens and the mask; one that is given replaces that of EVEREST."""
        tokens = self.patch_embed["proj"](video).flatten(2).transpose(1, 2)
        if self.shape.everest:
            kept, n, v = by_motion(tokens, self.shape), tokens.shape[1], self.shape.num_visible
            kept = kept.gather(1, torch.rand(kept.shape).argsort(dim=1))
            drawn = chosen(kept[:, :v], n), chosen(kept[:, v:], n)
            mask = mask or drawn
        x = pick(tokens + self.positions.clone().detach(), mask[0])
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask


class Decoder(nn.Module):
    """Blocks over all tokens handed over; norm and head for the last of them."""

    def __init__(self, shape: Shape):
        super().__init__()
        d, hidden = shape.decoder_width, shape.hidden * shape.decoder_width // shape.width
        self.blocks = nn.ModuleList(
            Block(d, shape.decoder_heads, hidden) for _ in range(shape.decoder_depth)
        )
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.head = nn.Linear(d, math.prod(shape.tubelet) * 3)

    def forward(self, x: Tensor, num_target: int) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_target:]))


class Autoencoder(nn.Module):
    """Pre-training; the loss is that of the released engines."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.encoder_to_decoder = nn.Linear(shape.width, shape.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.positions = sinusoid(shape, shape.decoder_width)

    def loss(self, video: Tensor, mask: Any) -> Tensor:
        with torch.no_grad():
            wanted = normalised(video, self.shape)
        x, (visible, target) = self.encoder(video, mask)
        x = self.encoder_to_decoder(x)
        positions = self.positions.expand(x.shape[0], -1, -1).clone().detach()
        hidden = self.mask_token + pick(positions, target)
        x = torch.cat((x + pick(positions, visible), hidden), dim=1)
        return F.mse_loss(self.decoder(x, hidden.shape[1]), pick(wanted, target))


def normalised(video: Tensor, shape: Shape) -> Tensor:
    """Targets of all tokens `[B, N, P]`: pixels in [0, 1], normalised by tubelet and channel."""
    mean, std = (torch.tensor(x)[None, :, None, None, None] for x in (MEAN, STD))
    (t, h, w), (p_t, p_h, p_w) = shape.grid, shape.tubelet
    pixels = (video * std + mean).view(-1, 3, t, p_t, h, p_h, w, p_w)
    pixels = pixels.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(-1, t * h * w, p_t * p_h * p_w, 3)
    deviation = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
    return ((pixels - pixels.mean(dim=-2, keepdim=True)) / deviation).flatten(2)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: no decay for vectors and the mask token."""
    kinds: tuple[list[Any], list[Any]] = [], []
    for name, parameter in model.named_parameters():
        kinds[parameter.ndim > 1 and not name.endswith("mask_token")].append(parameter)
    return [{"params": p, "weight_decay": decay} for p, decay in zip(kinds, (0.0, weight_decay))]
