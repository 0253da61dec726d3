"""The SDK's shadow client, for one named shadow and for asyncio. The only module that knows it.

The library answers on its own thread; here its answers come to the event loop. A request is not waited for any longer
once the link has changed: what became of it, a fresh `get` tells.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from awscrt.mqtt_request_response import ClientOptions, SubscriptionStatusEventType
from awsiot import ServiceStreamOptions, V2ServiceException
from awsiot.iotshadow import (
    GetNamedShadowRequest,
    IotShadowClientV2,
    NamedShadowUpdatedSubscriptionRequest,
    ShadowState,
    UpdateNamedShadowRequest,
)

from agent.errors import AgentError
from agent.protocol.shadow_document import SHADOW_NAME

log = logging.getLogger(__name__)

OPERATION_TIMEOUT_S: Final = 30
STREAM_TIMEOUT_S: Final = 10.0
SUBSCRIPTIONS: Final = ClientOptions(
    max_request_response_subscriptions=4,  # get, and accepted and rejected of update, and one to spare
    max_streaming_subscriptions=1,
    operation_timeout_in_seconds=OPERATION_TIMEOUT_S,
)


class Snapshot(NamedTuple):
    """A shadow as it was; version 0 is one that does not exist."""

    version: int
    desired: Any
    reported: Any


class ShadowRefusedError(AgentError):
    """The service refused with `code`; without one, it could not be asked, or its answer not be read."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code: Final = code


class ShadowClient:
    """`get`, `update` and the stream of documents of one thing. All methods belong to the event loop."""

    def __init__(self, thing_name: str, on_document: Callable[[Snapshot], None], on_stream: Callable[[], None]) -> None:
        """`on_document` and `on_stream` (documents are heard again, and some may have been missed) run on the loop."""
        self._shadow: Final = {"thing_name": thing_name, "shadow_name": SHADOW_NAME}
        self._on_document: Final = on_document
        self._on_stream: Final = on_stream
        self._client: Any = None
        self._service: Any = None
        self._stream: Any = None
        self._streaming = asyncio.Event()
        self._relinked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    async def attach(self, client: Any) -> None:
        """Use this client of the library from now on. Waits, a while, until documents are heard by a new one."""
        self._loop = asyncio.get_running_loop()
        self._relinked.clear()
        if client is self._client:
            return
        self.close()
        self._client, self._service = client, IotShadowClientV2(client, SUBSCRIPTIONS)
        service = self._service

        def on_loop(callback: Callable[[Any], None]) -> Callable[[Any], None]:
            def ours(event: Any) -> None:
                if self._service is service:  # one that was let go says that it was
                    callback(event)

            return lambda event: self._post(ours, event)

        options = ServiceStreamOptions(
            incoming_event_listener=on_loop(self._heard),
            subscription_status_listener=on_loop(self._stream_changed),
            deserialization_failure_listener=on_loop(self._not_understood),
        )
        request = NamedShadowUpdatedSubscriptionRequest(**self._shadow)
        self._stream = self._service.create_named_shadow_updated_stream(request, options)
        self._stream.open()
        try:
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                await self._streaming.wait()
        except TimeoutError:
            log.warning("changes of the shadow are not heard yet; going on with what it holds")

    def close(self) -> None:
        """Let go of the library's client."""
        self._client = self._service = self._stream = None
        self._streaming.clear()

    def relinked(self) -> None:
        """The link is another one: a request under way ends as failed."""
        self._relinked.set()

    async def get(self) -> Snapshot:
        """Raises ShadowRefusedError."""
        try:
            held = await self._answer(self._service.get_named_shadow(GetNamedShadowRequest(**self._shadow)))
        except ShadowRefusedError as error:
            if error.code == 404:  # noqa: PLR2004  as the service says it
                return Snapshot(0, None, None)
            raise
        if held.state is None or not _is_version(held.version):
            raise ShadowRefusedError("the shadow service answered without a state or a version")
        return Snapshot(held.version, held.state.desired, held.state.reported)

    async def update(self, reported: dict[str, Any], version: int) -> int:
        """Send what changes in `reported` of the shadow of that version, 0 for any; returns the new version.

        Raises ShadowRefusedError.
        """
        request = UpdateNamedShadowRequest(
            **self._shadow, state=ShadowState(reported=reported), version=version or None
        )
        answer = await self._answer(self._service.update_named_shadow(request))
        if not _is_version(answer.version):
            raise ShadowRefusedError("the shadow service answered without a version")
        return int(answer.version)

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
            raise ShadowRefusedError("the link changed before the shadow service answered")
        try:
            return future.result()
        except V2ServiceException as error:
            modeled = error.modeled_error
            code = modeled.code if modeled and isinstance(modeled.code, int) else None
            reason = (modeled.message if modeled else None) or error.inner_error or error.message
            raise ShadowRefusedError(f"{code or 'no answer'}: {reason}", code) from error

    def _heard(self, event: Any) -> None:
        current = event.current
        if current is None or current.state is None or not _is_version(current.version):
            self._not_understood(None)
            return
        self._on_document(Snapshot(current.version, current.state.desired, current.state.reported))

    def _stream_changed(self, event: Any) -> None:
        if event.type == SubscriptionStatusEventType.SUBSCRIPTION_LOST:
            return  # the library subscribes again, and says so
        if event.type == SubscriptionStatusEventType.SUBSCRIPTION_HALTED:
            log.error("changes of the shadow are not heard until the next connect: %s", event.error)
            self._client = None  # the next `attach` begins anew
        self._streaming.set()
        self._on_stream()

    @staticmethod
    def _not_understood(failure: Any) -> None:
        log.warning("a document of the shadow was not understood: %s", failure and failure.inner_error)

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        """From the library's thread to the loop; after the loop has closed there is nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("event after the end of the loop dropped")


def _is_version(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
