"""What the SDK's clients of AWS IoT's services have in common, for asyncio: requests with an answer, and one stream.

The library answers on its own thread; here its answers come to the event loop. A request is not waited for any longer
once the link has changed: what became of it, a fresh look tells.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from awscrt.mqtt_request_response import ClientOptions, SubscriptionStatusEventType
from awsiot import ServiceStreamOptions, V2ServiceException

from agent.errors import AgentError

log = logging.getLogger(__name__)

OPERATION_TIMEOUT_S: Final = 30
STREAM_TIMEOUT_S: Final = 10.0


def client_options(request_subscriptions: int) -> ClientOptions:
    """Of a client with one stream; the subscriptions are what requests may hold at a time."""
    return ClientOptions(
        max_request_response_subscriptions=request_subscriptions,
        max_streaming_subscriptions=1,
        operation_timeout_in_seconds=OPERATION_TIMEOUT_S,
    )


class ServiceClient(ABC):
    """All methods belong to the event loop."""

    def __init__(self, what: str, on_stream: Callable[[], None]) -> None:
        """`what` the stream tells, in words. `on_stream`: it is heard again, and something may have been missed."""
        self._what: Final = what
        self._on_stream: Final = on_stream
        self._client: Any = None
        self._service: Any = None
        self._stream: Any = None
        self._streaming = asyncio.Event()
        self._relinked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self.refused = False
        """Whether the broker refuses the stream, until the next `attach`."""

    @abstractmethod
    def _make(self, client: Any) -> Any:
        """The SDK's client of the service."""

    @abstractmethod
    def _open(self, service: Any, options: ServiceStreamOptions) -> Any:
        """The SDK's stream, not opened yet."""

    @abstractmethod
    def _heard(self, event: Any) -> None:
        """An event of the stream, on the loop."""

    @abstractmethod
    def _refusal(self, message: str, modeled: Any) -> AgentError:
        """What a failed request raises; `modeled` is the service's answer, if it came to one."""

    async def attach(self, client: Any) -> None:
        """Use this client of the library from now on. Waits, a while, until the stream of a new one is heard."""
        self._loop = asyncio.get_running_loop()
        self._relinked.clear()
        if client is self._client:
            return
        self.close()
        self._client, self._service, self.refused = client, self._make(client), False
        service = self._service

        def on_loop(callback: Callable[[Any], None]) -> Callable[[Any], None]:
            def ours(event: Any) -> None:
                if self._service is service:  # one that was let go says that it was
                    callback(event)

            return lambda event: self._post(ours, event)

        self._stream = self._open(
            service,
            ServiceStreamOptions(
                incoming_event_listener=on_loop(self._heard),
                subscription_status_listener=on_loop(self._stream_changed),
                deserialization_failure_listener=on_loop(self._not_understood),
            ),
        )
        self._stream.open()
        try:
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                await self._streaming.wait()
        except TimeoutError:
            log.warning("%s are not heard yet; going on without", self._what)

    def close(self) -> None:
        """Let go of the library's client."""
        self._client = self._service = self._stream = None
        self._streaming.clear()

    def relinked(self) -> None:
        """The link is another one: a request under way ends as failed."""
        self._relinked.set()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _answer(self, future: Future[Any]) -> Any:
        done = asyncio.Event()  # not wrap_future: giving up must not cancel what the library is about to complete
        future.add_done_callback(lambda _: self._post(done.set))
        waits = [asyncio.ensure_future(event.wait()) for event in (done, self._relinked)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not future.done():
            raise self._refusal("the link changed before the service answered", None)
        try:
            return future.result()
        except V2ServiceException as error:
            modeled = error.modeled_error
            code = (modeled and modeled.code) or "no answer"
            reason = (modeled.message if modeled else None) or error.inner_error or error.message
            raise self._refusal(f"{code}: {reason}", modeled) from error

    def _stream_changed(self, event: Any) -> None:
        if event.type == SubscriptionStatusEventType.SUBSCRIPTION_LOST:
            return  # the library subscribes again, and says so
        if event.type == SubscriptionStatusEventType.SUBSCRIPTION_HALTED:
            log.error("%s are not heard until the next connect: %s", self._what, event.error)
            self._client = None  # the next `attach` begins anew
            self.refused = True
        self._streaming.set()
        self._on_stream()

    def _not_understood(self, failure: Any) -> None:
        log.warning("%s: one was not understood: %s", self._what, failure and failure.inner_error)

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        """From the library's thread to the loop; after the loop has closed there is nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("event after the end of the loop dropped")


def is_version(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
