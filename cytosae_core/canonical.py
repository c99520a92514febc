"""One encoding of values to bytes and back: canonical JSON (RFC 8785), digests, strict parsing, tensors.

Every digest in the project is SHA-256 over bytes made here, so that two machines that hold the same value
compute the same digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from .errors import MessageError

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_JSON_DEPTH = 32


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return sha256_hex(canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value (dict, list, tuple, str, int, float, bool, None).

    Raises:
        MessageError: for NaN, infinity, integers beyond 2**53, lone surrogates or other types.
    """
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise MessageError("Expected text without lone surrogates in canonical JSON.") from error


def _encode(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _encode_string(value)
    if isinstance(value, int):
        if abs(value) > 2**53:
            raise MessageError(f"Expected |integer| <= 2**53, got integer={value}.")
        return str(value)
    if isinstance(value, float):
        return _encode_float(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_encode(item) for item in value) + "]"
    if isinstance(value, dict):
        return _encode_object(value)
    raise MessageError(f"Expected a JSON value, got type={type(value).__name__}.")


def _encode_object(value: dict[Any, Any]) -> str:
    if not all(isinstance(key, str) for key in value):
        raise MessageError("Expected text keys in a JSON object.")
    # RFC 8785 section 3.2.3: keys are ordered by their UTF-16 code units.
    keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{_encode_string(key)}:{_encode(value[key])}" for key in keys) + "}"


def _encode_string(value: str) -> str:
    # Python's escapes are those of RFC 8785 except for DEL, which RFC 8785 leaves as it is (so does Python).
    return encode_basestring(value)


def _encode_float(value: float) -> str:
    """ECMAScript Number::toString (RFC 8785 section 3.2.2.3), from Python's shortest repr."""
    if not math.isfinite(value):
        raise MessageError(f"Expected a finite number, got {value}.")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent_text = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    leading = len(whole + fraction) - len(digits)
    point = len(whole) - leading + int(exponent_text or 0)  # position of the decimal point in `digits`
    digits = digits.rstrip("0")
    return sign + _place_point(digits, point)


def _place_point(digits: str, point: int) -> str:
    count = len(digits)
    if count <= point <= 21:
        return digits + "0" * (point - count)
    if 0 < point <= 21:
        return digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return (digits if count == 1 else f"{digits[0]}.{digits[1:]}") + exponent


def parse_json(data: bytes, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly (RFC 8259, and RFC 7493 where it is stricter): one value, one meaning.

    Raises:
        MessageError: its `reason` is JSON_SIZE (over `max_bytes`), JSON_UTF8 (also lone surrogates), JSON_BOM,
            JSON_DEPTH (over 32), JSON_DUP (a key twice), JSON_NUM (|integer| > 2**53, or a float that overflows),
            JSON_CONST (NaN, Infinity), JSON_TRAIL (more after the value) or JSON_SYNTAX.
    """
    if len(data) > max_bytes:
        raise MessageError(
            f"Expected at most max_bytes={max_bytes} of JSON, got {len(data)}.", reason="JSON_SIZE"
        )
    try:
        text = data.decode("utf-8")
        if text.startswith("\ufeff"):
            raise MessageError("Expected JSON without a byte order mark.", reason="JSON_BOM")
        _check_depth(text)
        value = _DECODER.decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises on half of a pair
    except UnicodeError as error:
        raise MessageError("Expected JSON in UTF-8 without lone surrogates.", reason="JSON_UTF8") from error
    except (ValueError, RecursionError) as error:
        trail = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        raise MessageError(
            "Expected one well-formed JSON value.", reason="JSON_TRAIL" if trail else "JSON_SYNTAX"
        ) from error
    return value


# A string to its end, or an unfinished one to the end of the text: every character is looked at once.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()
        depth += (mark in "[{") - (mark in "]}") if len(mark) == 1 else 0
        if depth > MAX_JSON_DEPTH:
            raise MessageError(f"Expected JSON depth <= {MAX_JSON_DEPTH}.", reason="JSON_DEPTH")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MessageError("Expected unique keys in a JSON object.", reason="JSON_DUP")
    return found


def _no_constant(name: str) -> Any:
    raise MessageError(f"Expected finite numbers, got {name}.", reason="JSON_CONST")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MessageError("Expected finite numbers in JSON.", reason="JSON_NUM")
    return value


def _exact_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > 2**53:
        raise MessageError("Expected |integer| <= 2**53 in JSON.", reason="JSON_NUM")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_constant=_no_constant,
    parse_float=_finite_float,
    parse_int=_exact_integer,
)
