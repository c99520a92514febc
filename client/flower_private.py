"""Everything the relay needs from Flower that Flower does not publish, in one place.

Flower has no public way to take a SuperNode's task without unpacking the coordinator's app bundle and running
it. These are the calls that `flower-superexec` and `flwr-clientapp` make themselves (flwr 1.41.0,
`supercore/superexec/run_superexec.py` and `supernode/runtime/run_clientapp.py`), less the two steps that
install and load the bundle. Two of Flower's helpers are replaced, because they end the process by a signal
when one task is lost, and a relay outlives its tasks: the retry policy and the heartbeat.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import flwr
import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from cytosae_core.errors import SetupError

SUPPORTED_FLWR = ("1.41.0",)
# How long one call to the SuperNode is repeated while it restarts. Its tasks do not survive a restart.
RETRY_S = 20.0
MAX_RETRY_DELAY_S = 5
ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
DENIED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
RELAY_ERROR_CODE = 2


def check_flwr_version(version: str = flwr.__version__) -> None:
    """Refuse a Flower version whose private functions were not tested with this relay.

    Raises:
        SetupError: `version` is not in `SUPPORTED_FLWR`.
    """
    if version not in SUPPORTED_FLWR:
        raise SetupError(
            f"Expected flwr in {SUPPORTED_FLWR}, got flwr={version}.",
            hint=f"Install flwr=={SUPPORTED_FLWR[-1]} beside this package.",
        )


class TaskQueue:
    """The SuperNode's queue of ClientApp tasks.

    Args:
        address: host:port of the SuperNode's runtime API.
        secret: raw bytes of the SuperNode's `--superexec-auth-secret-file`, or None when it has none.
    """

    def __init__(self, address: str, secret: bytes | None) -> None:
        extra: list[Any] = []
        if secret is not None:
            methods = frozenset({ACQUIRE_METHOD})
            extra = [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)]
        self._client = _client(address, "SuperExec", extra)

    def acquire(self) -> str | None:
        """Token of the oldest waiting task, or None when there is none.

        Raises:
            SetupError: the SuperNode refuses this relay's secret.
            ConnectionError: the SuperNode does not answer; try again later.
        """
        try:
            response = self._client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code in DENIED:
                raise SetupError(
                    "Expected the SuperNode to accept this relay, got a refusal.",
                    hint="Give relay and SuperNode the same secret file.",
                ) from error
            raise ConnectionError("the SuperNode reports an error") from error
        except httpx.HTTPError as error:
            raise ConnectionError("the SuperNode does not answer") from error
        return response.token if response.HasField("task") and response.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Task:
    """One task: pull its message, push the answer; a heartbeat runs in between, however long it takes.

    Use as a context manager: leaving it reports the end of the task to the SuperNode.

    Args:
        address: host:port of the SuperNode's runtime API.
        token: what `TaskQueue.acquire` gave.
        stop: when set, calls that fail are not repeated.
    """

    def __init__(self, address: str, token: str, stop: threading.Event) -> None:
        self.lost = threading.Event()
        interceptor = RuntimeTokenHttpInterceptor(token)
        self._client = _client(address, "flwr-clientapp", [interceptor], self._retries(stop))
        self._beat_client = _client(address, "flwr-clientapp", [interceptor])
        self._heartbeat = HeartbeatSender(self._beat)
        self._context: Context | None = None
        self._message: Message | None = None
        self._answered = False

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def pull(self) -> Message:
        """The coordinator's message. The app bundle comes in the same answer and is dropped unopened."""
        self._message, self._context, _, _ = pull_task_input(self._client)
        return self._message

    def push(self, reply: Message) -> None:
        """Hand the reply, made with `reply_to=` the pulled message, to the SuperNode."""
        push_message(self._client, reply, self._context)
        self._answered = True

    def push_error(self) -> None:
        """Say that the relay failed, and nothing more: any text here would be read by the coordinator."""
        if self._message is not None:
            error = Error(code=RELAY_ERROR_CODE, reason="relay error")
            push_message(self._client, Message(error, reply_to=self._message), self._context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = SubStatus.COMPLETED if self._answered else SubStatus.FAILED
        try:
            # A SuperNode that was away for all the repeats just now has forgotten the task.
            if not self.lost.is_set() and not isinstance(error, httpx.TransportError):
                push_task_output(client=self._client, context=self._context, sub_status=status, details="")
        finally:
            self._heartbeat.stop()
            self._client.close()
            self._beat_client.close()

    def _beat(self) -> bool:
        """One heartbeat; False asks for a repeat. A task that the SuperNode gave up is marked, not retried."""
        try:
            response = self._beat_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in DENIED:
                return False
            self.lost.set()
            return True
        except httpx.HTTPError:
            return False
        if not response.success:
            self.lost.set()
        return True

    def _retries(self, stop: threading.Event) -> RetryInvoker:
        """Repeat what the network lost. Flower's own policy never gives up, and ends the process on a 401."""
        return RetryInvoker(
            wait_gen_factory=lambda: exponential(max_delay=MAX_RETRY_DELAY_S),
            recoverable_exceptions=httpx.TransportError,
            max_tries=None,
            max_time=RETRY_S,
            should_giveup=lambda error: stop.is_set() or self.lost.is_set(),
            wait_function=stop.wait,
        )


def _client(
    address: str, component: str, extra: list[Any], retries: RetryInvoker | None = None
) -> RuntimeHttpClient:
    # Plain HTTP: the runtime API is on loopback or inside the site's own network namespace, and what passes
    # is sealed end to end.
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), *extra],
        retry_invoker=retries,
    )
