"""From LiteLLM's log to JetStream: spooled first, published until acknowledged.

`record` returns when the event is on disk. One task writes what has gathered in one commit, another publishes from
the spool and removes what JetStream has acknowledged; NATS may be away for as long as the disk has room.
"""

import asyncio
import logging
from typing import Optional

import nats
from nats.errors import Error as NatsError

from platform_api_litellm.payload import message_id
from platform_api_litellm.spool import Spool

_log = logging.getLogger("platform_api.publisher")

# Events of one round of publishing; their acknowledgements are awaited together.
_ROUND_EVENTS = 256
# How long one acknowledgement may take, in seconds.
_ACK_SECONDS = 5.0
_BACKOFF_SECONDS = (0.25, 15.0)
# How often the spools of dead workers are looked for, in seconds.
_ADOPT_SECONDS = 10.0
# How long the rest may take when the proxy stops, in seconds. What is not published by then stays in the spool.
_DRAIN_SECONDS = 5.0


class Publisher:
    def __init__(self, spool: Spool, nats_url: str, subject: str):
        self._spool = spool
        self._nats_url = nats_url
        self._subject = subject
        self._gathered: list[tuple[bytes, asyncio.Future]] = []
        self._something_gathered = asyncio.Event()
        self._something_spooled = asyncio.Event()
        self._connection: Optional[nats.NATS] = None
        # An event that the disk did not take is held here and tried again: new calls are refused meanwhile.
        self.failing: Optional[str] = None
        self._tasks = [asyncio.create_task(work()) for work in (self._write, self._publish, self._adopt)]

    async def record(self, body: bytes) -> None:
        """Returns when the event is on disk, however long that takes."""
        written = asyncio.get_running_loop().create_future()
        self._gathered.append((body, written))
        self._something_gathered.set()
        await written

    async def close(self) -> None:
        """Publishes what is left as long as it may, and leaves the rest on disk."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while self._gathered or await asyncio.to_thread(self._spool.oldest, 1):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            _log.warning("platform-api: %d events stay in the spool", await asyncio.to_thread(self._spool.waiting))
        for task in self._tasks:
            task.cancel()
        if self._connection is not None:
            await self._connection.close()
        await asyncio.to_thread(self._spool.close)

    async def _write(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            await self._something_gathered.wait()
            self._something_gathered.clear()
            while self._gathered:
                batch = self._gathered[:]
                try:
                    await asyncio.to_thread(self._spool.write, [body for body, _ in batch])
                except Exception as error:
                    self.failing = f"{type(error).__name__}: {error}"
                    _log.error("platform-api: %d events are not on disk: %s", len(batch), self.failing)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, _BACKOFF_SECONDS[1])
                    continue
                self.failing, delay = None, _BACKOFF_SECONDS[0]
                del self._gathered[: len(batch)]
                self._something_spooled.set()
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)

    async def _publish(self) -> None:
        delay = _BACKOFF_SECONDS[0]
        while True:
            # Cleared before the spool is read, so that nothing that is written meanwhile is overlooked.
            self._something_spooled.clear()
            rows = await asyncio.to_thread(self._spool.oldest, _ROUND_EVENTS)
            if not rows:
                await self._something_spooled.wait()
                continue
            acknowledged, problem = await self._round(rows)
            if acknowledged:
                await asyncio.to_thread(self._spool.drop, acknowledged)
            if problem is None:
                delay = _BACKOFF_SECONDS[0]
            else:
                _log.warning("platform-api: %d events wait in the spool: %s", len(rows) - len(acknowledged), problem)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _BACKOFF_SECONDS[1])

    async def _round(self, rows: list[tuple[int, bytes]]) -> tuple[list[int], Optional[BaseException]]:
        """Which of the rows are acknowledged, and why others are not."""
        try:
            stream = await self._stream()
        except (NatsError, OSError, TimeoutError) as error:
            return [], error
        publishing = [
            stream.publish(self._subject, body, timeout=_ACK_SECONDS, headers={"Nats-Msg-Id": message_id(body)})
            for _, body in rows
        ]
        results = await asyncio.gather(*publishing, return_exceptions=True)
        problems = [result for result in results if isinstance(result, BaseException)]
        acknowledged = [row[0] for row, result in zip(rows, results) if not isinstance(result, BaseException)]
        return acknowledged, problems[0] if problems else None

    async def _stream(self):
        if self._connection is None:
            self._connection = await nats.connect(
                self._nats_url, name="platform-api-litellm", connect_timeout=5, max_reconnect_attempts=-1,
                reconnect_time_wait=0.5, error_cb=_ignore, allow_reconnect=True,
            )
        return self._connection.jetstream()

    async def _adopt(self) -> None:
        while True:
            try:
                adopted = await asyncio.to_thread(self._spool.adopt)
            except Exception as error:
                _log.warning("platform-api: other workers' spools could not be looked at: %s", error)
                adopted = 0
            if adopted:
                _log.warning("platform-api: took over %d events of a worker that is gone", adopted)
                self._something_spooled.set()
            await asyncio.sleep(_ADOPT_SECONDS)


async def _ignore(_error) -> None:
    """Connection errors are told where they delay an event; nats-py would print each of them besides."""
