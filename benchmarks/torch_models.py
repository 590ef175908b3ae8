"""The released PyTorch models, re-created from their description, to compare ours with.

They compute as those do: every token is embedded before the mask is applied, all targets are
normalised before those wanted are picked, attention is written out, blocks follow one another.
Parameters have the official names. VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636).
"""

import math
from collections import OrderedDict
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
    encoder: tuple[int, int, int]
    """Width, depth and heads."""
    decoder: tuple[int, int, int]
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


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layers = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, fc2=nn.Linear(4 * width, width)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def stack(width: int, depth: int, heads: int) -> nn.Sequential:
    """Blocks that follow one another."""
    return nn.Sequential(*(Block(width, heads) for _ in range(depth)))


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


class Autoencoder(nn.Module):
    """Pre-training; the loss is that of the released engines."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, wide, narrow = shape, shape.encoder[0], shape.decoder[0]
        conv = nn.Conv3d(3, wide, shape.tubelet, shape.tubelet)
        embedding = nn.Sequential(OrderedDict(proj=conv))
        parts = {"patch_embed": embedding, "blocks": stack(*shape.encoder)}
        self.encoder = nn.ModuleDict(parts | {"norm": nn.LayerNorm(wide, eps=1e-6)})
        self.encoder_to_decoder = nn.Linear(wide, narrow, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        parts = {"blocks": stack(*shape.decoder), "norm": nn.LayerNorm(narrow, eps=1e-6)}
        self.decoder = nn.ModuleDict(
            parts | {"head": nn.Linear(narrow, math.prod(shape.tubelet) * 3)}
        )
        self.positions = sinusoid(shape, wide), sinusoid(shape, narrow)

    def encoded(self, video: Tensor, mask: Any) -> tuple[Tensor, Any]:
        """Encoded visible tokens and the mask; one that is given replaces that of EVEREST."""
        tokens = self.encoder["patch_embed"](video).flatten(2).transpose(1, 2)
        if self.shape.everest:
            kept, n, v = by_motion(tokens, self.shape), tokens.shape[1], self.shape.num_visible
            kept = kept.gather(1, torch.rand(kept.shape).argsort(dim=1))
            drawn = chosen(kept[:, :v], n), chosen(kept[:, v:], n)
            mask = mask or drawn
        x = pick(tokens + self.positions[0].clone().detach(), mask[0])
        return self.encoder["norm"](self.encoder["blocks"](x)), mask

    def loss(self, video: Tensor, mask: Any) -> Tensor:
        with torch.no_grad():
            wanted = normalised(video, self.shape)
        x, (visible, target) = self.encoded(video, mask)
        x = self.encoder_to_decoder(x)
        positions = self.positions[1].expand(x.shape[0], -1, -1).clone().detach()
        hidden = self.mask_token + pick(positions, target)
        x = torch.cat((x + pick(positions, visible), hidden), dim=1)
        x = self.decoder["blocks"](x)[:, -hidden.shape[1] :]
        return F.mse_loss(self.decoder["head"](self.decoder["norm"](x)), pick(wanted, target))


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
