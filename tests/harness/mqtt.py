"""A device that connects to the emulator by MQTT 5 and mutual TLS, with the client of AWS's device SDK."""

from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Self

from awscrt import mqtt5
from awscrt.io import ClientTlsContext, TlsContextOptions

from embedded.stack import Addresses

_HOST: Final = "localhost"
_ANSWER_SECONDS: Final = 20.0
"""How long to wait for an answer of the broker. Only a test that fails waits so long."""
_RECONNECT_MILLISECONDS: Final = 100


@dataclass(frozen=True)
class DeviceIdentity:
    """The certificate of a device and its private key, both in PEM."""

    certificate_pem: str
    private_key_pem: str


@dataclass(frozen=True)
class Message:
    """A message that a device received."""

    topic: str
    payload: bytes


class RefusedError(Exception):
    """The broker did not accept a connection.

    Args:
        reason: the reason in its answer; None if it closed the connection without an answer, as it does for
            a certificate that is not active.
        error: the error of the client.
    """

    def __init__(self, reason: mqtt5.ConnectReasonCode | None, error: Exception) -> None:
        super().__init__(f"{reason!r}: {error}")
        self.reason = reason


class MqttDevice:
    """A context manager that connects a device, and disconnects it at the end.

    Like a real device it connects again, after a tenth of a second, whenever its connection ends. The methods
    block: a test in the event loop of a worker calls them by `asyncio.to_thread`.

    Args:
        stack: the servers; the device connects to the MQTT port of the emulator.
        identity: the certificate and key of the device.
        client_id: the client id, which is the Thing name unless the device cheats.

    Raises:
        RefusedError: the broker does not accept the first connection.
    """

    def __init__(self, stack: Addresses, identity: DeviceIdentity, client_id: str) -> None:
        self.connections = 0
        """The number of connections that the broker has accepted."""
        self.refusals = 0
        """The number of connections that the broker has refused."""
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._first_answer: Future[None] = Future()
        self._disconnected: Future[mqtt5.DisconnectReasonCode | None] = Future()
        self._stopped: Future[None] = Future()
        tls = TlsContextOptions.create_client_with_mtls(
            identity.certificate_pem.encode(), identity.private_key_pem.encode()
        )
        tls.override_default_trust_store_from_path(ca_filepath=stack.ca_file)
        self._client = mqtt5.Client(
            mqtt5.ClientOptions(
                host_name=_HOST,
                port=stack.mqtt_port,
                tls_ctx=ClientTlsContext(tls),
                connect_options=mqtt5.ConnectPacket(client_id=client_id),
                # An operation fails with its connection, and does not wait for the next one.
                offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
                retry_jitter_mode=mqtt5.ExponentialBackoffJitterMode.NONE,
                min_reconnect_delay_ms=_RECONNECT_MILLISECONDS,
                max_reconnect_delay_ms=_RECONNECT_MILLISECONDS,
                on_publish_callback_fn=self._on_message,
                on_lifecycle_event_connection_success_fn=self._on_connected,
                on_lifecycle_event_connection_failure_fn=self._on_refused,
                on_lifecycle_event_disconnection_fn=self._on_disconnected,
                on_lifecycle_event_stopped_fn=lambda _: self._stopped.set_result(None),
            )
        )

    def __enter__(self) -> Self:
        self._client.start()
        try:
            self._first_answer.result(_ANSWER_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def publish(self, topic: str, payload: str = "{}") -> mqtt5.PubackReasonCode:
        """Publish with QoS 1, and return the reason code of the acknowledgement."""
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)
        acknowledged = self._client.publish(packet).result(_ANSWER_SECONDS)
        return mqtt5.PubackReasonCode(acknowledged.puback.reason_code)

    def subscribe(self, *topic_filters: str) -> list[mqtt5.SubackReasonCode]:
        """Subscribe with QoS 1, and return the reason code of each filter."""
        wanted = [mqtt5.Subscription(each, mqtt5.QoS.AT_LEAST_ONCE) for each in topic_filters]
        packet = mqtt5.SubscribePacket(subscriptions=wanted)
        return list(self._client.subscribe(packet).result(_ANSWER_SECONDS).reason_codes)

    def receive(self, seconds: float = _ANSWER_SECONDS) -> Message:
        """Return the next message.

        Raises:
            queue.Empty: no message arrived in this time.
        """
        return self._messages.get(timeout=seconds)

    def wait_disconnected(self, seconds: float) -> mqtt5.DisconnectReasonCode | None:
        """Wait until the first connection has ended, and return the broker's reason; None if it gave none.

        Raises:
            TimeoutError: the connection is still open after this time.
        """
        return self._disconnected.result(seconds)

    def _stop(self) -> None:
        self._client.stop()
        self._stopped.result(_ANSWER_SECONDS)

    # Called in a thread of the client

    def _on_message(self, received: mqtt5.PublishReceivedData) -> None:
        packet = received.publish_packet
        self._messages.put(Message(packet.topic, packet.payload or b""))

    def _on_connected(self, _: mqtt5.LifecycleConnectSuccessData) -> None:
        self.connections += 1
        if not self._first_answer.done():
            self._first_answer.set_result(None)

    def _on_refused(self, failure: mqtt5.LifecycleConnectFailureData) -> None:
        self.refusals += 1
        if not self._first_answer.done():
            packet = failure.connack_packet
            error = RefusedError(packet.reason_code if packet else None, failure.exception)
            self._first_answer.set_exception(error)

    def _on_disconnected(self, end: mqtt5.LifecycleDisconnectData) -> None:
        if not self._disconnected.done():
            packet = end.disconnect_packet
            self._disconnected.set_result(packet.reason_code if packet else None)
