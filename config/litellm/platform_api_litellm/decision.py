"""Decisions before a call, from memory as long as they hold.

platform-api says how long an answer is good: until `refreshAfter` it is used as it is, until `validUntil` while a newer
one is fetched beside the call, and after that a call waits for the answer. Without one, the fail mode decides; but a
denial holds until the period it is about is over, because forgetting it would open what a quota has closed.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Optional

import httpx

from platform_api_litellm.settings import Settings

_log = logging.getLogger("platform_api.decision")

# Questions that are remembered; the one that was not asked for the longest time gives way.
_ANSWERS_MAX = 10_000
# How long a platform-api that did not answer is left in peace, in seconds.
_PEACE_SECONDS = 1.0


# What waiting does not change: the tenant's policy has no such model.
_MODEL_NOT_ALLOWED = "MODEL_NOT_ALLOWED"
# Where a request may name models besides `model`: LiteLLM asks them when that one fails, without asking us again.
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
# Models of one request: each is a question, and a client chooses how many it names.
_MODELS_MAX = 16
# What platform-api takes a question about. Nobody can say anything of a longer name, and no answer would let it pass.
_MODEL_BYTES_MAX = 256


class Denied(Exception):
    """A quota forbids the call, or the tenant's policy the model; the latter has nothing to wait for."""

    def __init__(self, detail: dict, retry_after_seconds: Optional[int]):
        super().__init__(detail["error"])
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class Unknown(Exception):
    """Nobody can say whether the call is allowed, and the fail mode is closed."""


@dataclass
class Answer:
    """What platform-api said last about one question; `refresh` is the fetch that is under way."""

    decision: Optional[dict] = None
    etag: Optional[str] = None
    refresh_after: float = 0.0
    valid_until: float = 0.0
    reset_at: Optional[float] = None
    peace_until: float = 0.0
    problem: str = ""
    refresh: Optional[asyncio.Task] = field(default=None, repr=False)

    def denies(self) -> bool:
        return self.decision is not None and self.decision.get("decision") == "deny"

    def holds(self, now: float) -> bool:
        """Is it good enough to be used without waiting for another?"""
        return self.decision is not None and now < self.valid_until

    def outlives_an_outage(self, now: float) -> bool:
        return self.denies() and (self.reset_at is None or now < self.reset_at)


class Decisions:
    def __init__(self, settings: Settings):
        """Raises ValueError when a setting is missing or cannot be used."""
        if not settings.url or not settings.api_key:
            raise ValueError("PLATFORM_API_URL and PLATFORM_API_KEY must be set to ask for decisions")
        self._fail_closed = settings.fail_mode == "closed"
        self._tenants = _read_tenants(settings.tenants_file)
        self._answers: OrderedDict[tuple, Answer] = OrderedDict()
        self._client = httpx.AsyncClient(
            base_url=settings.url, headers={"X-API-Key": settings.api_key}, timeout=settings.timeout_seconds
        )

    async def ask(self, key, model: str) -> None:
        """`key` is LiteLLM's UserAPIKeyAuth. Returns when the call may go on; raises Denied or Unknown otherwise."""
        tenant = self._tenant_of(key)
        if tenant is None:
            return self._without_answer("the key belongs to no tenant")
        # As the ledger attributes the call once it is over.
        question = (tenant, key.user_id or "", key.team_id or "", key.key_alias or key.token or "", model)
        answer = self._answers.setdefault(question, Answer())
        self._answers.move_to_end(question)
        if len(self._answers) > _ANSWERS_MAX:
            self._answers.popitem(last=False)
        now = time.time()
        if now >= max(answer.refresh_after, answer.peace_until) and answer.refresh is None:
            answer.refresh = asyncio.create_task(self._refresh(question, answer))
        if not answer.holds(now) and answer.refresh is not None:
            await asyncio.shield(answer.refresh)
            now = time.time()
        if answer.holds(now) or answer.outlives_an_outage(now):
            return self._judge(answer, now)
        return self._without_answer(answer.problem)

    def _judge(self, answer: Answer, now: float) -> None:
        if not answer.denies():
            return
        reasons = answer.decision.get("reasons", [])
        if any(reason.get("code") == _MODEL_NOT_ALLOWED for reason in reasons):
            raise Denied({"error": "model not allowed", "code": _MODEL_NOT_ALLOWED, "reasons": reasons}, None)
        reset_at = answer.reset_at or answer.valid_until
        detail = {"error": "quota exceeded", "code": "QUOTA_EXCEEDED", "reasons": reasons}
        raise Denied(detail, max(1, round(reset_at - now)))

    def _without_answer(self, problem: str) -> None:
        if self._fail_closed:
            raise Unknown(problem)
        _log.warning("platform-api: a call goes on without a decision: %s", problem)

    async def _refresh(self, question: tuple, answer: Answer) -> None:
        try:
            await self._fetch(question, answer)
            answer.problem = ""
        except (httpx.HTTPError, ValueError, KeyError) as error:
            answer.problem = f"{type(error).__name__}: {error}"
            answer.peace_until = time.time() + _PEACE_SECONDS
        finally:
            answer.refresh = None

    async def _fetch(self, question: tuple, answer: Answer) -> None:
        tenant, user, group, api_key, model = question
        asked = {"userId": user, "groupId": group, "apiKeyId": api_key, "model": model}
        headers = {"If-None-Match": answer.etag} if answer.etag else {}
        response = await self._client.get(
            f"/v1/quotas/{tenant}/decision", params={name: value for name, value in asked.items() if value},
            headers=headers,
        )
        if response.status_code == 304:
            # The same answer, for as long again.
            held = answer.valid_until - answer.refresh_after
            answer.refresh_after = time.time() + _seconds_of(response.headers.get("Cache-Control", ""))
            answer.valid_until = answer.refresh_after + held
            return
        response.raise_for_status()
        decision = response.json()
        answer.refresh_after = _epoch(decision["refreshAfter"])
        answer.valid_until = _epoch(decision["validUntil"])
        answer.reset_at = _epoch(decision["resetAt"]) if decision.get("resetAt") else None
        answer.etag = response.headers.get("ETag")
        answer.decision = decision

    def _tenant_of(self, key) -> Optional[str]:
        """The tenant that the key's metadata names, or the one that the file gives to its team, organization,
        project, hash or alias: in the order in which platform-api attributes usage."""
        named = (key.metadata or {}).get("platform_tenant_id")
        if named:
            return str(named)
        ids = (
            ("team", key.team_id),
            ("organization", key.org_id),
            ("project", getattr(key, "project_id", None)),
            ("keyHash", key.token),
            ("keyAlias", key.key_alias),
        )
        return next((self._tenants[f"{kind}:{id}"] for kind, id in ids if f"{kind}:{id}" in self._tenants), None)


def models_of(data: dict) -> list[str]:
    """Every model that a request names: LiteLLM takes several with commas between, and others to fall back to. One at
    least, which is empty when there is none. Raises Denied when they are too many, or a name is too long."""
    named = [str(data.get("model") or "")]
    for field_name in _FALLBACKS:
        named.extend(_strings(data.get(field_name)))
    models = [model.strip() for text in named for model in text.split(",")]
    models = list(dict.fromkeys(model for model in models if model))
    if len(models) > _MODELS_MAX or any(len(model.encode()) > _MODEL_BYTES_MAX for model in models):
        told = f"a request may name {_MODELS_MAX} models of {_MODEL_BYTES_MAX} bytes"
        raise Denied({"error": told, "code": _MODEL_NOT_ALLOWED, "reasons": []}, None)
    return models or [""]


def _strings(value) -> list[str]:
    """Names of models in a list of names, of `{"model": name, …}`, or of `{name: [names]}`."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return _strings([value["model"]] if "model" in value else list(value.values()))
    return [name for part in value for name in _strings(part)] if isinstance(value, list) else []


def _read_tenants(path: Optional[str]) -> dict[str, str]:
    """A JSON object from `team:<id>`, `organization:<id>`, `project:<id>`, `keyHash:<hash>` or `keyAlias:<alias>` to
    the tenant's id."""
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        tenants = json.load(file)
    if not isinstance(tenants, dict) or not all(isinstance(tenant, str) for tenant in tenants.values()):
        raise ValueError(f"{path}: not a JSON object of tenant ids")
    return tenants


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _seconds_of(cache_control: str) -> float:
    parts = (part.strip() for part in cache_control.split(","))
    return next((float(part[8:]) for part in parts if part.startswith("max-age=") and part[8:].isdigit()), 1.0)
