"""The arithmetic of the forward pass. fp32 is the study's default; the others trade digits for time.

    fp32   IEEE single everywhere: TF32 and oneDNN's bf16 shortcuts are switched off whatever the process set before
    tf32   matrix products with 10-bit mantissas on NVIDIA cards from Ampere on; on a CPU the same as fp32
    bf16   autocast: products in bfloat16 (8-bit mantissa), residual stream, norms and softmax in fp32
    fp16   autocast: products in float16 (11-bit mantissa, largest value 65504)

Tokens leave as float32 in every case. Anything but fp32 is part of the encoder's digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import SetupError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> str:
    """The name itself; SetupError when it is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise SetupError(f"Expected precision in {PRECISIONS}, got precision={precision!r}.")
    return precision


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run a forward pass in one of `PRECISIONS`; the process's own settings come back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=precision == "tf32"):
            if precision in _AUTOCAST:
                with torch.autocast(device.type, dtype=_AUTOCAST[precision]):
                    yield
            else:
                yield
    finally:
        torch.set_float32_matmul_precision(before)
