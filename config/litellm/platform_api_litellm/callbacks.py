"""The two callbacks of the proxy's configuration: `usage` counts every call, `quota` asks before every call.

    litellm_settings:
      callbacks: ["platform_api_litellm.callbacks.usage", "platform_api_litellm.callbacks.quota"]

Settings are read, and the spool is opened, with the first call: LiteLLM imports this before its event loop runs.
"""

import asyncio
import functools
import logging
import uuid
from collections import OrderedDict
from typing import Optional

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from platform_api_litellm.decision import Decisions, Denied, Unknown, models_of
from platform_api_litellm.payload import encoded, reduced
from platform_api_litellm.publisher import Publisher
from platform_api_litellm.settings import from_environment
from platform_api_litellm.spool import Spool

_log = logging.getLogger("platform_api.callbacks")

# Where a call's own name travels from its beginning to its log. The client may choose every other id of it.
_CALL = "platform_api_call"
# How long an answer waits for its event to be on disk, in seconds. LiteLLM logs within milliseconds.
_LOGGED_SECONDS = 2.0
# Calls whose logging is remembered until their answer asks for it.
_LOGGED_MAX = 10_000


class Usage(CustomLogger):
    """Every call into the spool, before its answer leaves, and from there to JetStream."""

    def __init__(self):
        super().__init__()
        self._publisher: Optional[Publisher] = None
        self._logged: OrderedDict[str, asyncio.Event] = OrderedDict()

    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        publisher = self._started()
        if publisher.failing is not None:
            # What cannot be counted is not served.
            detail = {"error": "usage cannot be recorded", "reason": publisher.failing}
            raise HTTPException(status_code=503, detail=detail, headers={"Retry-After": "5"})
        _metadata(data)[_CALL] = uuid.uuid4().hex
        return data

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        await self._record(kwargs)

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        await self._record(kwargs)

    async def async_post_call_response_headers_hook(
        self, data, user_api_key_dict, response, request_headers=None, litellm_call_info=None
    ):
        """The last step before an answer leaves."""
        if response is not None and not data.get("stream"):
            await self._until_logged(data)
        return None

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        async for chunk in response:
            yield chunk
        # The end of the stream is held back, not its content.
        await self._until_logged(request_data)

    async def _record(self, kwargs: dict) -> None:
        payload = kwargs.get("standard_logging_object")
        if payload is None:
            _log.error("platform-api: a call without standard_logging_object cannot be counted")
            return
        # Shielded: LiteLLM cancels a callback after 20 seconds, and the event must reach the disk all the same.
        await asyncio.shield(self._started().record(encoded(reduced(payload))))
        parameters = kwargs.get("litellm_params") or {}
        call = next((_call(parameters.get(name)) for name in _METADATA_NAMES if _call(parameters.get(name))), None)
        if call is not None:
            self._entry(call).set()

    async def _until_logged(self, data: dict) -> None:
        call = _call(_metadata(data))
        if call is None:
            return
        try:
            await asyncio.wait_for(self._entry(call).wait(), _LOGGED_SECONDS)
        except TimeoutError:
            _log.warning("platform-api: an answer left before its event was on disk")
        self._logged.pop(call, None)

    def _entry(self, call: str) -> asyncio.Event:
        entry = self._logged.setdefault(call, asyncio.Event())
        if len(self._logged) > _LOGGED_MAX:
            self._logged.popitem(last=False)
        return entry

    def _started(self) -> Publisher:
        if self._publisher is None:
            settings = from_environment()
            spool = Spool(settings.spool_folder, settings.spool_events_max)
            self._publisher = Publisher(spool, settings.nats_url, settings.subject)
        return self._publisher


class Quota(CustomLogger):
    """Refuses calls that a quota or the policy's list of models forbids; answers from memory between two looks at platform-api."""

    @functools.cached_property
    def _decisions(self) -> Decisions:
        return Decisions(from_environment())

    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        try:
            for model in models_of(data):
                await self._decisions.ask(user_api_key_dict, model)
        except Denied as denied:
            if denied.retry_after_seconds is None:
                raise HTTPException(status_code=403, detail=denied.detail) from None
            headers = {"Retry-After": str(denied.retry_after_seconds)}
            raise HTTPException(status_code=429, detail=denied.detail, headers=headers) from None
        except Unknown as unknown:
            detail = {"error": "quota unknown", "reason": str(unknown)}
            raise HTTPException(status_code=503, detail=detail, headers={"Retry-After": "1"}) from None
        return data


# LiteLLM keeps its own metadata under the second name on routes whose body has a field `metadata`.
_METADATA_NAMES = ("metadata", "litellm_metadata")


def _metadata(data: dict) -> dict:
    for name in reversed(_METADATA_NAMES):
        if isinstance(data.get(name), dict):
            return data[name]
    return data.setdefault("metadata", {})


def _call(metadata) -> Optional[str]:
    return metadata.get(_CALL) if isinstance(metadata, dict) else None


usage = Usage()
quota = Quota()
