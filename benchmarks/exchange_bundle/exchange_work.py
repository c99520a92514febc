"""What a site does for one message in the benchmark: a small step with torch, then so many bytes, sealed."""

from __future__ import annotations

import torch

from cytosae_core.sealed import REPLY_LABEL, ReplyKey, seal_box


def work(size: int) -> bytes:
    """A few products of a dictionary's size, and a sealed reply of about `size` bytes."""
    tokens, dictionary = torch.randn(512, 384), torch.randn(384, 1024)
    for _ in range(5):
        (tokens @ dictionary).relu().sum()
    return seal_box(bytes(size), ReplyKey().public_hex, REPLY_LABEL, "0" * 64)
