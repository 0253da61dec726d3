"""The SDK's shadow client, for one named shadow. The only module that knows it."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from awsiot import ServiceStreamOptions
from awsiot.iotshadow import (
    GetNamedShadowRequest,
    IotShadowClientV2,
    NamedShadowUpdatedSubscriptionRequest,
    ShadowState,
    UpdateNamedShadowRequest,
)

from agent.cloud.service_client import ServiceClient, client_options, is_version
from agent.errors import AgentError
from agent.protocol.shadow_document import SHADOW_NAME

SUBSCRIPTIONS: Final = 4
"""get, and accepted and rejected of update, and one to spare."""


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


class ShadowClient(ServiceClient):
    """`get`, `update` and the stream of documents of one thing. All methods belong to the event loop."""

    def __init__(self, thing_name: str, on_document: Callable[[Snapshot], None], on_stream: Callable[[], None]) -> None:
        """`on_document` and `on_stream` (documents are heard again, and some may have been missed) run on the loop."""
        super().__init__("changes of the shadow", on_stream)
        self._shadow: Final = {"thing_name": thing_name, "shadow_name": SHADOW_NAME}
        self._on_document: Final = on_document

    async def get(self) -> Snapshot:
        """Raises ShadowRefusedError."""
        try:
            held = await self._answer(self._service.get_named_shadow(GetNamedShadowRequest(**self._shadow)))
        except ShadowRefusedError as error:
            if error.code == 404:  # noqa: PLR2004  as the service says it
                return Snapshot(0, None, None)
            raise
        if held.state is None or not is_version(held.version):
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
        if not is_version(answer.version):
            raise ShadowRefusedError("the shadow service answered without a version")
        return int(answer.version)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _make(self, client: Any) -> Any:
        return IotShadowClientV2(client, client_options(SUBSCRIPTIONS))

    def _open(self, service: Any, options: ServiceStreamOptions) -> Any:
        request = NamedShadowUpdatedSubscriptionRequest(**self._shadow)
        return service.create_named_shadow_updated_stream(request, options)

    def _heard(self, event: Any) -> None:
        current = event.current
        if current is None or current.state is None or not is_version(current.version):
            self._not_understood(None)
            return
        self._on_document(Snapshot(current.version, current.state.desired, current.state.reported))

    def _refusal(self, message: str, modeled: Any) -> AgentError:
        return ShadowRefusedError(message, modeled.code if modeled and isinstance(modeled.code, int) else None)
