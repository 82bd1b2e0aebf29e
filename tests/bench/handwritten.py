"""The examples as one would write them in PyTorch: parameters in the order in which graphir names them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Odds(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.high, self.low = nn.Linear(8, 3), nn.Linear(8, 5)
        self.high_stitch, self.low_stitch = nn.Linear(3, 4), nn.Linear(5, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        weights = torch.softmax(self.router(x) / 0.5, -1)
        high = self.high_stitch(torch.sigmoid(self.high(x)))
        low = self.low_stitch(torch.sigmoid(self.low(x)))
        mixed = weights[..., 0:1] * high + weights[..., 1:2] * low
        return torch.sigmoid(self.head(mixed))


class SwiGLU(nn.Module):
    act = staticmethod(F.silu)

    def __init__(self, d, hidden):
        super().__init__()
        self.gate = nn.Linear(d, hidden, bias=False)
        self.up = nn.Linear(d, hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


class GeGLU(SwiGLU):
    act = staticmethod(F.gelu)


class ReGLU(SwiGLU):
    act = staticmethod(F.relu)


def turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    def __init__(self, d, heads, kv, qk_norm=False):
        super().__init__()
        size = d // heads
        self.heads, self.kv, self.size = heads, kv, size
        self.q = nn.Linear(d, heads * size, bias=False)
        self.k = nn.Linear(d, kv * size, bias=False)
        self.v = nn.Linear(d, kv * size, bias=False)
        self.q_norm = nn.RMSNorm(size, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(size, eps=1e-6) if qk_norm else None
        self.o = nn.Linear(heads * size, d, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, t, self.kv, self.size).transpose(1, 2)
        v = self.v(x).view(b, t, self.kv, self.size).transpose(1, 2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv != self.heads)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


def angles(t, size, theta):
    """cos and sin [t, size] of rotary positions, once for all layers."""
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.arange(t, dtype=torch.float32)[:, None] * frequencies
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


class ShortConv(nn.Module):
    def __init__(self, d, kernel=3):
        super().__init__()
        self.kernel = kernel
        self.in_proj = nn.Linear(d, 3 * d, bias=False)
        self.conv = nn.Conv1d(d, d, kernel, groups=d, padding=kernel - 1, bias=False)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x, *_):
        t = x.shape[1]
        b, c, u = self.in_proj(x).chunk(3, -1)
        mixed = self.conv((b * u).transpose(1, 2))[..., :t].transpose(1, 2)
        return self.out_proj(c * mixed)


class Layer(nn.Module):
    def __init__(self, d, mixer, hidden, eps):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(d, eps=eps)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(d, eps=eps)
        self.mlp = SwiGLU(d, hidden)

    def forward(self, x, cos, sin):
        x = x + self.mixer(self.mixer_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Llama, and with `convolutions` LFM2: which layers have a short convolution in the place of attention."""

    def __init__(self, vocab, d, depth, heads, kv, hidden, theta, eps=1e-5, convolutions=(), qk_norm=False, tied=False):
        super().__init__()
        self.size, self.theta = d // heads, theta
        self.emb = nn.Embedding(vocab, d)
        mixers = [ShortConv(d) if i in convolutions else Attention(d, heads, kv, qk_norm) for i in range(depth)]
        self.layers = nn.ModuleList([Layer(d, mixer, hidden, eps) for mixer in mixers])
        self.norm = nn.RMSNorm(d, eps=eps)
        self.head = None if tied else nn.Linear(d, vocab, bias=False)

    def forward(self, tokens):
        x = self.emb(tokens)
        cos, sin = angles(tokens.shape[1], self.size, self.theta)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.norm(x)
        return F.linear(x, self.emb.weight) if self.head is None else self.head(x)


class Conv(nn.Module):
    def __init__(self, i, c):
        super().__init__()
        self.conv2d = nn.Conv2d(i, c, 3, padding=1)
        self.norm = nn.GroupNorm(8, c)

    def forward(self, x):
        return F.silu(self.norm(self.conv2d(x)))


class Level(nn.Module):
    def __init__(self, i, c, inner):
        super().__init__()
        self.first, self.second = Conv(i, c), Conv(c, c)
        self.down = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.inner = inner
        self.up = nn.ConvTranspose2d(2 * c, c, 2, stride=2)
        self.last = Conv(2 * c, c)

    def forward(self, x):
        skip = self.second(self.first(x))
        return self.last(torch.cat((skip, self.up(self.inner(self.down(skip)))), 1))


class UNet(nn.Module):
    def __init__(self, c, classes):
        super().__init__()
        net: nn.Module = Conv(16 * c, 16 * c)
        for factor in (8, 4, 2, 1):
            net = Level(3 if factor == 1 else factor * c, factor * c, net)
        self.net = net
        self.head = nn.Conv2d(c, classes, 1)

    def forward(self, image):
        if image.shape[2] % 16 or image.shape[3] % 16:
            raise ValueError("four halvings")
        return self.head(self.net(image))


class Joins(nn.Module):
    """Of `fork_join.arch` what needs no recurrence: two branches added, a gate, a learned blend."""

    def __init__(self, d):
        super().__init__()
        self.time, self.space = ShortConv(d, 4), SwiGLU(d, 4 * d)
        self.content, self.control = nn.Linear(d, d), nn.Linear(d, d)
        self.a, self.b, self.c = SwiGLU(d, 4 * d), GeGLU(d, 4 * d), ReGLU(d, 4 * d)
        self.blend = nn.ParameterList([torch.zeros(3)])

    def forward(self, x):
        both = self.time(x) + self.space(x)
        gated = self.content(x) * torch.sigmoid(self.control(x))
        weights = torch.softmax(self.blend[0], 0)
        mixed = weights[0] * self.a(x) + weights[1] * self.b(x) + weights[2] * self.c(x)
        return both + gated + mixed


class Mixture(nn.Module):
    """Mixtral's layer of experts: the two best of them, their weights divided by their sum."""

    def __init__(self, d, hidden, experts, keep):
        super().__init__()
        self.keep = keep
        self.router = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList([SwiGLU(d, hidden) for _ in range(experts)])

    def forward(self, x):
        flat = x.flatten(0, 1)
        shares, chosen = torch.softmax(self.router(flat), -1).topk(self.keep)
        shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * shares[token, place, None])
        return out.view_as(x)


class Tiny(nn.Module):
    """600 nodes on tensors of a few numbers: a linear map, an activation and an addition, 200 times."""

    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.linear = nn.Linear(d, d)

        def forward(self, x):
            return x + torch.tanh(self.linear(x))

    def __init__(self, blocks, d):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(d) for _ in range(blocks)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x
