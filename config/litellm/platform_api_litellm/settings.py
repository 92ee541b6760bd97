"""Settings from the environment, all with the prefix PLATFORM_API_."""

import os
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Settings:
    nats_url: str
    subject: str
    spool_folder: str
    spool_events_max: int
    url: Optional[str]
    api_key: Optional[str]
    fail_mode: str
    timeout_seconds: float
    tenants_file: Optional[str]


def from_environment() -> Settings:
    """Raises ValueError, naming the variable, when a setting cannot be used."""
    return Settings(
        nats_url=_text("NATS_URL", "nats://127.0.0.1:4222"),
        subject=_text("NATS_SUBJECT", "quota.updated"),
        spool_folder=_text("SPOOL_DIR", "/var/lib/platform-api-litellm"),
        spool_events_max=_number("SPOOL_EVENTS_MAX", 1_000_000),
        url=os.environ.get("PLATFORM_API_URL"),
        api_key=os.environ.get("PLATFORM_API_KEY"),
        fail_mode=_one_of("FAIL_MODE", ("open", "closed")),
        timeout_seconds=_number("TIMEOUT_MS", 100) / 1_000,
        tenants_file=os.environ.get("PLATFORM_API_TENANTS_FILE"),
    )


def _text(name: str, default: str) -> str:
    return os.environ.get(f"PLATFORM_API_{name}") or default


def _number(name: str, default: int) -> int:
    text = _text(name, str(default))
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"PLATFORM_API_{name}: not a whole number above zero: {text!r}")
    return int(text)


def _one_of(name: str, choices: tuple) -> str:
    text = _text(name, choices[0])
    if text not in choices:
        raise ValueError(f"PLATFORM_API_{name}: must be one of {', '.join(choices)}, not {text!r}")
    return text
