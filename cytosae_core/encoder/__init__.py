"""Encoders, their preprocessing, and the token store."""

from .build import build_store
from .encoder import Encoder, EncoderSpec, default_layer, load_encoder
from .facts import ENCODERS
from .store import TokenStore, open_store, store_key

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "TokenStore",
    "build_store",
    "default_layer",
    "load_encoder",
    "open_store",
    "store_key",
]
