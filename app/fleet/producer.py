"""The Kafka producer as we want it: idempotent, lz4, a few milliseconds of gathering."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from app.errors import ConfigurationError
from app.settings import KafkaSettings

_library = logging.getLogger("librdkafka")

_GIVE_UP_MS = {"hold": 0, "ack": 5_000}
"""How long Kafka may take for one message; 0: for ever. One that were given up and sent anew would come behind younger
ones of its camera. `InHand` bounds how many wait.
"""


def make(settings: KafkaSettings, *, on_error: Callable[[KafkaError], None]) -> Producer:
    """Brokers that are away are no error: they are waited for.

    Args:
        on_error: called, from `poll`, with what concerns no single message: a broker away, a refused password.

    Raises:
        ConfigurationError: KAFKA_OPTIONS or KAFKA_BOOTSTRAP_SERVERS are no good.
    """

    # It writes a line for every try to connect; what they say comes by `on_error` as well.
    _library.setLevel(logging.CRITICAL)
    try:
        return Producer({**options(settings), "error_cb": on_error}, logger=_library)
    except (KafkaException, ValueError) as error:
        raise ConfigurationError(
            f"KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers!r} with KAFKA_OPTIONS: {error}"
        ) from None


def options(settings: KafkaSettings) -> dict[str, Any]:
    """librdkafka's, KAFKA_OPTIONS last.

    Raises:
        ConfigurationError: KAFKA_OPTIONS is no JSON object.
    """
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": "sightline-fleet",
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.timeout.ms": _GIVE_UP_MS[settings.kafka_failure_policy],
        "retry.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "log.connection.close": False,
        **_further(settings),
    }


def _further(settings: KafkaSettings) -> dict[str, Any]:
    wanted = 'want a JSON object of librdkafka options, for example {"security.protocol": "SASL_SSL"}'
    try:
        options = json.loads(settings.kafka_options.get_secret_value() or "{}")
    except ValueError as error:
        raise ConfigurationError(f"KAFKA_OPTIONS: {error}; {wanted}") from None
    if not isinstance(options, dict):
        raise ConfigurationError(f"KAFKA_OPTIONS: a {type(options).__name__}; {wanted}")
    return options


HOPELESS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
    }
)
"""What Kafka says of a message that it will never take."""
