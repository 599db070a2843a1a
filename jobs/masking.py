"""What looks like a secret does not leave this machine."""

import re

MASK = "***"

_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:password|passwd|secret|token|api_?key|access_?key|credentials?|auth)$", re.I
)
# A name may end like a secret and be none: the tokenizer's own settings.
_KNOWN_NAMES = re.compile(r"(?:^|[._-])(?:pad|sep|eos|bos|unk|mask|cls)_token$", re.I)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+@")
_IN_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|password|secret|signature|api_?key)|sig)=)[^&\s\"']+", re.I
)
_KNOWN_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16})\b"
)


def mask(text: str) -> str:
    """`text` without passwords in addresses and without keys of known form."""
    text = _IN_ADDRESS.sub(f"{MASK}@", text)
    text = _IN_QUERY.sub(rf"\1{MASK}", text)
    return _KNOWN_KEYS.sub(MASK, text)


def mask_value(name: str, value: str) -> str:
    """The value of a setting: hidden altogether where its name says that it is a secret."""
    if _SECRET_NAME.search(name) and not _KNOWN_NAMES.search(name):
        return MASK
    return mask(value)
