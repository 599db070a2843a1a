"""Keeps secrets out of messages and documents."""

import re
from typing import Any

_HIDDEN = "***"
_SECRET_KEY = re.compile(
    r"(?i)(^|[._-])(token|password|passwd|secret|api_?key|credentials?|authorization)($|[._-])"
)
_SECRETS = (  # what the first group holds is kept
    re.compile(r"(://)[^/\s@]+(?=@)"),  # user:password@ or token@ in an address
    re.compile(r"(\b)(?:hf_|ghp_|gho_|glpat-|g2c_|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}"),
    re.compile(r"(\b)AKIA[A-Z0-9]{16}\b"),
    re.compile(r"(?i)(bearer )[A-Za-z0-9._~+/-]{8,}=*"),
    re.compile(r"(?i)(\b(?:\w*token|\w*secret\w*|sig|passw\w*|api[_-]?key)[=:])[^\s,;&'\"]+"),
)


def is_secret_name(name: str) -> bool:
    """Whether a key of this name usually holds a secret."""
    return _SECRET_KEY.search(name) is not None


def mask(text: str) -> str:
    """The text with whatever looks like a secret replaced by ***."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{_HIDDEN}", text)
    return text


def mask_value(field: str | None, value: Any) -> Any:
    """The value of a field, hidden where the field's name or the value looks like a secret."""
    if field is not None and value is not None and is_secret_name(field):
        return _HIDDEN
    if isinstance(value, dict):
        return {key: mask_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [mask_value(None, inner) for inner in value]
    return mask(value) if isinstance(value, str) else value


def unmask_value(value: Any, original: Any, field: str | None = None) -> Any:
    """The value with whatever is hidden in it as in the original, where it comes from there."""
    if isinstance(value, dict) and isinstance(original, dict):
        return {key: unmask_value(value[key], original.get(key), str(key)) for key in value}
    if isinstance(value, list) and isinstance(original, list) and len(value) == len(original):
        return [unmask_value(a, b) for a, b in zip(value, original, strict=True)]
    return original if value == mask_value(field, original) else value
