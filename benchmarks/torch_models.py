"""The released PyTorch models, made again from their description, to compare ours with.

They compute as those do: every token is embedded before the mask is applied, all targets are
normalised before those wanted are picked, attention is written out, blocks follow one another.
Parameters have the official names. VideoMAE (arXiv 2203.12602), EVEREST (arXiv 2211.10636),
VideoMAE V2 (arXiv 2303.16727), AdaMAE (arXiv 2211.09120).
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
    mask: str
    """Name of our strategy; "" for none."""
    num_visible: int
    num_target: int
    num_classes: int = 0
    """0 for an autoencoder."""
    drop_path: float = 0.0
    sampler_heads: int = 8
    sampler_dropout: float = 0.0

    @property
    def pixels(self) -> int:
        """P, the length of a flattened tubelet."""
        return math.prod(self.tubelet) * 3


def sinusoid(num_tokens: int, width: int) -> Tensor:
    """Fixed positions `[1, N, D]` over the flattened token index."""
    rate = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    angle = np.arange(num_tokens)[:, None] * rate
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return torch.from_numpy(angle).float()[None]


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values; keys have no bias."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            zeros = torch.zeros_like(self.v_bias, requires_grad=False)
            bias = torch.cat((self.q_bias, zeros, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.drop(self.proj((weights @ v).transpose(1, 2).reshape(b, n, d)))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Pre-norm block with drop path."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        drop_path: float = 0.0,
        bias: bool = True,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
    ):
        super().__init__()
        self.rate = drop_path
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = Attention(width, heads, bias, dropout)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, hidden, dropout)

    def path(self, x: Tensor) -> Tensor:
        """Drops the branch of whole clips."""
        if not self.rate:
            return x
        keep = torch.rand(x.shape[0], 1, 1, dtype=x.dtype, device=x.device).add_(1 - self.rate)
        return x.div(1 - self.rate) * keep.floor_()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.path(self.attn(self.norm1(x)))
        return x + self.path(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """Embeds tubelets by a convolution; `[B, 3, T, H, W]` -> `[B, N, D]`."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.proj = nn.Conv3d(3, shape.width, shape.tubelet, shape.tubelet)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video).flatten(2).transpose(1, 2)


def motion(tokens: Tensor, shape: Shape) -> Tensor:
    """EVEREST's score `[B, N]`: the distance to the token before it in time."""
    with torch.no_grad():
        slots = tokens.detach().clone().unflatten(1, (shape.grid[0], -1))
        distance = torch.norm(slots[:, 1:] - slots[:, :-1], p=2, dim=-1)
        return torch.cat((distance[:, :1], distance), dim=1).flatten(1)


def chosen(index: Tensor, num_tokens: int) -> Tensor:
    """True at each clip's indices `[B, K]`; `[B, N]`."""
    out = torch.zeros(index.shape[0], num_tokens, dtype=torch.bool, device=index.device)
    return out.scatter_(1, index, True)


def pick(x: Tensor, where: Tensor) -> Tensor:
    """Tokens of each clip where it is True, in their order."""
    return x[where].reshape(x.shape[0], -1, x.shape[-1])


class Encoder(nn.Module):
    """Embedding, blocks and norm; with EVEREST and AdaMAE the masks are made in here."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.patch_embed = Patches(shape)
        self.positions = sinusoid(math.prod(shape.grid), shape.width)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.hidden) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        if shape.mask == "adamae":
            self.pos_embed_probs = nn.Parameter(torch.zeros(1, math.prod(shape.grid), shape.width))
            block = Block(
                shape.width,
                shape.sampler_heads,
                4 * shape.width,
                bias=False,
                dropout=shape.sampler_dropout,
                epsilon=1e-5,
            )
            self.get_token_probs = nn.Sequential(block, nn.Linear(shape.width, 1))

    def draw(self, tokens: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor]:
        """Visible and target tokens as the released code draws them, True where chosen."""
        n = tokens.shape[1]
        if p is not None:
            index = torch.multinomial(p.detach(), self.shape.num_visible, replacement=False)
            visible = chosen(index, n)
            return visible, ~visible
        v = self.shape.num_visible
        kept = motion(tokens, self.shape).argsort(dim=1, descending=True)
        kept = kept[:, : v + self.shape.num_target]
        order = torch.rand(kept.shape, device=kept.device).argsort(dim=1)
        kept = kept.gather(1, order)
        return chosen(kept[:, :v], n), chosen(kept[:, v:], n)

    def forward(
        self, video: Tensor, visible: Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Encoded visible tokens, both masks, the sampler's probabilities.

        Masks that are given replace those drawn in here, at the same cost.
        """
        tokens, p = self.patch_embed(video), None
        if self.shape.mask == "adamae":
            logits = self.get_token_probs(tokens + self.pos_embed_probs).flatten(1)
            p = torch.nan_to_num(logits).softmax(dim=-1)
        if self.shape.mask in ("adamae", "everest"):
            drawn = self.draw(tokens, p)
            visible, target = drawn if visible is None or target is None else (visible, target)
        assert visible is not None
        assert target is not None
        positions = self.positions.type_as(tokens).to(tokens.device).clone().detach()
        x = pick(tokens + positions, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), visible, target, p


class Decoder(nn.Module):
    """Blocks over all tokens handed over; norm and head for the last of them."""

    def __init__(self, shape: Shape):
        super().__init__()
        d = shape.decoder_width
        ratio = shape.hidden / shape.width
        self.blocks = nn.ModuleList(
            Block(d, shape.decoder_heads, int(d * ratio)) for _ in range(shape.decoder_depth)
        )
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.head = nn.Linear(d, shape.pixels)

    def forward(self, x: Tensor, num_target: int) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_target:]))


class Autoencoder(nn.Module):
    """Pre-training of all four; `forward` gives predictions, masks and AdaMAE's probabilities."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.encoder_to_decoder = nn.Linear(shape.width, shape.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.positions = sinusoid(math.prod(shape.grid), shape.decoder_width)

    def forward(
        self, video: Tensor, visible: Tensor | None = None, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        x, visible, target, p = self.encoder(video, visible, target)
        x = self.encoder_to_decoder(x)
        positions = self.positions.expand(x.shape[0], -1, -1).type_as(x).to(x.device)
        positions = positions.clone().detach()
        hidden = self.mask_token + pick(positions, target)
        x = torch.cat((x + pick(positions, visible), hidden), dim=1)
        return self.decoder(x, hidden.shape[1]), visible, target, p

    def loss(self, video: Tensor, visible: Tensor | None, target: Tensor | None) -> Tensor:
        """What each released engine minimises."""
        with torch.no_grad():
            wanted = normalised(video, self.shape)
        predicted, visible, target, p = self(video, visible, target)
        wanted = pick(wanted, target)
        if self.shape.mask == "dual":
            error = ((predicted - wanted) ** 2).mean(dim=-1)
            counts = (~visible)[target].reshape(error.shape)
            return (error * counts).sum() / counts.sum()
        loss = F.mse_loss(predicted, wanted)
        if p is None:
            return loss
        error = ((predicted - wanted) ** 2).mean(dim=-1).detach()
        sampling = torch.zeros((), device=p.device)
        for clip in range(p.shape[0]):
            distribution = torch.distributions.Categorical(probs=p[clip])
            log_p = distribution.log_prob(target[clip].nonzero().flatten())
            sampling = sampling - (log_p * error[clip]).mean()
        return loss + 1e-4 * sampling / p.shape[0]


class Classifier(nn.Module):
    """Fine-tuning, of all tokens or of those that EVEREST selects."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.patch_embed = Patches(shape)
        self.positions = sinusoid(math.prod(shape.grid), shape.width)
        rates = np.linspace(0, shape.drop_path, shape.depth)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.hidden, drop_path=float(rate)) for rate in rates
        )
        self.fc_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, shape.num_classes)

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        x = self.patch_embed(video)
        selected = None
        if self.shape.mask:
            order = motion(x, self.shape).argsort(dim=1, descending=True)
            selected = chosen(order[:, : self.shape.num_visible], x.shape[1])
        x = x + self.positions.type_as(x).to(x.device).clone().detach()
        if selected is not None:
            x = pick(x, selected if visible is None else visible)
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(dim=1)))


def normalised(video: Tensor, shape: Shape) -> Tensor:
    """Targets of all tokens `[B, N, P]`: pixels in [0, 1], normalised by tubelet and channel."""
    mean = torch.tensor(MEAN, device=video.device)[None, :, None, None, None]
    std = torch.tensor(STD, device=video.device)[None, :, None, None, None]
    (t, h, w), (p_t, p_h, p_w) = shape.grid, shape.tubelet
    pixels = (video * std + mean).view(-1, 3, t, p_t, h, p_h, w, p_w)
    pixels = pixels.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(-1, t * h * w, p_t * p_h * p_w, 3)
    deviation = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
    return ((pixels - pixels.mean(dim=-2, keepdim=True)) / deviation).flatten(2)


def groups(model: nn.Module, weight_decay: float, layer_decay: float, depth: int) -> list[Any]:
    """AdamW's groups: no decay for vectors and the mask token; in fine-tuning a rate per layer."""
    found: dict[Any, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.endswith(("bias", "mask_token"))
        words = name.split(".")
        layer = depth + 1
        if "patch_embed" in words or "patch_embeddings" in words:
            layer = 0
        elif numbers := [int(word) for word in words if word.isdigit()]:
            layer = numbers[0] + 1
        scale = layer_decay ** (depth + 1 - layer)
        group = {"params": [], "weight_decay": 0.0 if plain else weight_decay, "scale": scale}
        found.setdefault((scale, plain), group)["params"].append(parameter)
    return list(found.values())


def gradient_norm(model: nn.Module) -> Tensor:
    """Length of the whole gradient, as the released engines report it at every step."""
    norms = [p.grad.detach().norm(2) for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).norm(2)
