"""Access control: hosts, origins, this machine only, tokens, the throttle on guessing, the log of refusals.

No other module decides on access. `AuthMiddleware` checks every request and socket of the service; the live session
checks the token in `init` by `Auth.token`; the metrics server on METRICS_PORT checks hosts by `Hosts`. The checks of
each path:

| path | host | from this machine, if there are no tokens | origin | token |
|---|---|---|---|---|
| page, schema, health | yes | – | unless GET or HEAD | – |
| `/metrics`, `/status`, `/ping` | yes | – | yes | – |
| the live socket | yes | yes | yes | in `Authorization` or in `init` |
| everything else, with or without a route | yes | yes | yes | in `Authorization` |
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from app import metrics
from app.addresses import PORTS, Host, Origin, bracketed, is_loopback, read_host, read_origin
from app.errors import ConfigurationError
from app.limits import TokenBucket, backoff_s
from app.settings import Settings

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)

LIVE = "/ws/inference"
_HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
_PAGES = _HEALTH | {"/", "/config.json", "/schema.json", "/openapi.json"}
_PAGE_FILES = "/web/"
_FIGURES = frozenset({"/metrics", "/status", "/ping"})
_SAFE = ("GET", "HEAD")

_FREE_FAILURES = 10
"""Wrong tokens from an address before it has to wait."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0
"""Seconds; the wait doubles with each further wrong token."""
_FORGET_S = 900.0
"""An address without a wrong token for this long is forgotten."""
_MAX_ADDRESSES = 10_000
"""Most addresses remembered; beyond it, the one that was unused for longest is forgotten."""

_LINES, _LINES_PER_S = 2000, 50.0
"""Log lines about refusals: burst, and rate per second, so that refused clients cannot fill the disk."""
_EXPLAIN_EVERY_S = 60.0
_MAX_EXPLANATIONS = 20
"""Most explanations of one kind in that time, each for another host or origin."""
_MAX_ECHO = 100
"""Most characters of a client's text that a message or log line repeats."""


def require_tokens(settings: Settings) -> None:
    """Checks that a service beyond loopback has tokens, or is open on purpose.

    Raises:
        ConfigurationError: neither is the case.
    """
    access, host = settings.access, settings.server.host
    if access.auth_tokens or access.allow_anonymous or is_loopback(host):
        return
    raise ConfigurationError(
        f"HOST='{host}' is reachable from other machines, and AUTH_TOKENS is empty: "
        "set AUTH_TOKENS=some-long-secret, or ALLOW_ANONYMOUS=true if everybody may use it, or HOST=127.0.0.1"
    )


@dataclass(frozen=True)
class Refusal:
    """Why a request or socket is refused. `reason` is the label of AUTH_FAILURES."""

    status: int
    code: str
    reason: str
    message: str
    retry_after_s: int | None = None

    def response(self) -> JSONResponse:
        """The HTTP response of this refusal."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        error = {"code": self.code, "message": self.message, "field": None}
        return JSONResponse({"error": error}, self.status, headers)


class Hosts:
    """The host names this process answers to, against DNS rebinding.

    If `evil.example` resolves to 127.0.0.1, a browser treats a page from there and this service as one origin; but it
    sends `Host: evil.example`. An IP address as a host and loopback's names cannot be rebound, so they are safe.
    """

    def __init__(self, settings: Settings) -> None:
        access, host = settings.access, settings.server.host
        named = [read_host(name) for name in access.allowed_hosts if not name.startswith("*")]
        service = read_origin(_origin_of(settings.web.service_url)) if settings.web.service_url else None
        self._names = {name for name in named if name is not None}
        self._names |= {Host(service.name, None)} if service is not None else set()
        self._below = tuple(
            name
            for pattern in access.allowed_hosts
            if pattern.startswith("*.") and (name := read_host(pattern.removeprefix("*."))) is not None
        )
        self._any = "*" in access.allowed_hosts or (bool(access.auth_tokens) and not access.allowed_hosts)
        # A service that is open to other machines is reached by its addresses.
        self._addresses = not access.allowed_hosts and (access.allow_anonymous or not is_loopback(host))
        if (own := read_host(host)) is not None and own.address is None and not access.allowed_hosts:
            self._names.add(Host(own.name, None))
        self.setting = _shown("ALLOWED_HOSTS", access.allowed_hosts)

    def refusal(self, given: Sequence[str], path: str) -> Refusal | None:
        """Checks a request's `Host` headers, and the host in its target if that is a whole URL.

        Args:
            path: of the request, or its whole target if that is not a path.
        """
        if self._any:
            return None
        asked = [*given]
        if not path.startswith("/"):
            asked.append(path.partition("://")[2].partition("/")[0])
        if not asked and path in _HEALTH:
            return None  # HTTP/1.0, as load balancers use it; browsers always send Host
        if asked and all(self._allowed(host, path) for host in asked) and len(given) == 1:
            return None
        name = _plain(", ".join(asked)) or "nothing at all"
        return Refusal(
            421,
            "host",
            "host",
            f"this service does not answer to the name {name}: ALLOWED_HOSTS names those that it answers to",
        )

    def _allowed(self, given: str, path: str) -> bool:
        host = read_host(given)
        if host is None:
            return False
        address = host.address
        if address is not None and (self._addresses or path in _HEALTH or _loopback(host.name)):
            return True  # probes of a pod or container use its address
        if host.name == "localhost" or host in self._names or host._replace(port=None) in self._names:
            return True
        return any(host.name.endswith(f".{below.name}") and below.port in (None, host.port) for below in self._below)


class Auth:
    """Access control of one process. Each process remembers addresses on its own.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        access = settings.access
        self.hosts = Hosts(settings)
        self._anonymous = bool(access.auth_tokens) or access.allow_anonymous
        self._tokens = [_digest(token.get_secret_value()) for token in access.auth_tokens]
        self._any_origin = "*" in access.allowed_origins
        self._null_origin = "null" in access.allowed_origins
        self._origins = {read_origin(origin) for origin in access.allowed_origins} - {None}
        if settings.web.service_url is not None:
            self._origins.add(read_origin(_origin_of(settings.web.service_url)))
        self._origins_setting = _shown("ALLOWED_ORIGINS", access.allowed_origins)
        self._throttle = GuessThrottle(clock)
        self._refusals = RefusalLog(clock)

    @property
    def requires_token(self) -> bool:
        """Whether a token is required."""
        return bool(self._tokens)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Checks a request or socket; returns the refusal, which is counted and logged, or None.

        A socket without a token passes, because its client may send the token in `init`.
        """
        path, method = scope["path"], scope.get("method", "WEBSOCKET")
        route, address = f"{method} {path}", address_of(scope)
        refusal = self._misplaced(scope, path, method, route)
        if refusal is not None or not self._tokens:
            return refusal
        if scope["type"] == "websocket":
            return self._waiting(bearer(scope), address, route)
        if _open(path) or path in _FIGURES or path == LIVE:
            return None
        return self.token(bearer(scope), address, route)

    def _misplaced(self, scope: Scope, path: str, method: str, route: str) -> Refusal | None:
        """Checks host, this-machine-only and origin."""
        address = address_of(scope)
        refusal = self.hosts.refusal(_headers(scope, b"host"), path)
        if refusal is not None:
            self._refusals.explain(
                "host",
                refusal.message,
                f"{refusal.message}; {self.hosts.setting}. Add the name if it is one of this service's own",
            )
            return self._refused(refusal, address, route)
        if not (self._anonymous or _open(path) or path in _FIGURES or _local(scope)):
            message = (
                f"AUTH_TOKENS is empty, so only this machine itself is served, and this came from {_plain(address)}: "
                "set AUTH_TOKENS=some-long-secret, or ALLOW_ANONYMOUS=true if everybody may use it"
            )
            self._refusals.explain("anonymous", "", f"turned away: {message}")
            return self._refused(Refusal(403, "anonymous", "anonymous", message), address, route)
        if _open(path) and method in _SAFE:
            return None
        return self._foreign(scope, address, route)

    def _foreign(self, scope: Scope, address: str, route: str) -> Refusal | None:
        """Checks the origin: any page can make a browser send requests, also to a loopback service without tokens."""
        given = _headers(scope, b"origin")
        if not given or self._any_origin:
            return None
        origin, own = read_origin(given[0]) if len(given) == 1 else None, _own_origin(scope)
        if origin is not None and (origin == own or origin in self._origins):
            return None
        if given == ["null"] and self._null_origin:
            return None
        shown = _plain(", ".join(given)) or "an empty origin"
        message = f"pages of {shown} may not use this service: ALLOWED_ORIGINS names those that may, beside its own"
        if origin is not None and own is not None and origin.name == own.name:
            message += (
                f", {_url(own)}. If that is this page as a proxy sees it: the proxy must pass on Host as the browser "
                "sent it, and X-Forwarded-Proto, and be in FORWARDED_ALLOW_IPS"
            )
        self._refusals.explain("origin", shown, f"turned away: {message}; {self._origins_setting}")
        return self._refused(Refusal(403, "origin", "origin", message), address, route)

    def token(self, given: str | None, address: str, route: str) -> Refusal | None:
        """Checks a token; counts and logs a refusal, and remembers a wrong token.

        Args:
            given: None or empty if the client sent none.
            address: of the client; one that sends wrong tokens has to wait.
            route: for the log.
        """
        if not self._tokens:
            return None
        if not given:
            message = "this service wants a token: `Authorization: Bearer TOKEN`, or `init.token` over the live socket"
            return self._refused(Refusal(401, "unauthorized", "missing_token", message), address, route)
        waiting = self._waiting(given, address, route)
        if waiting is not None:
            return waiting
        token, network = self._match(given), _network(address)
        if token is not None:
            self._throttle.right(network, token)
            return None
        self._throttle.wrong(network)
        message = "this token does not open the service: want `Authorization: Bearer TOKEN` with one of AUTH_TOKENS"
        return self._refused(Refusal(401, "unauthorized", "bad_token", message), address, route)

    def late(self, address: str, route: str, within_s: float) -> Refusal:
        """Refuses a socket whose token did not arrive in time."""
        message = f"no token within {within_s:g} seconds"
        return self._refused(Refusal(401, "unauthorized", "late_token", message), address, route)

    def _waiting(self, given: str | None, address: str, route: str) -> Refusal | None:
        """Refuses every token of an address that has to wait; else the wait would not slow down guessing.

        A token that was valid from the same address before is still accepted, so that earlier clients behind that
        address are not locked out.
        """
        network = _network(address)
        wait_s = self._throttle.wait_s(network) if given else 0.0
        if not wait_s or self._throttle.knows(network, self._match(given or "")):
            return None
        seconds = math.ceil(wait_s)
        message = f"too many wrong tokens came from this address: it has to wait for {seconds} seconds"
        refusal = Refusal(429, "too_many_failures", "too_many_failures", message, retry_after_s=seconds)
        return self._refused(refusal, address, route)

    def _match(self, given: str) -> int | None:
        """Index of the matching token. Compares with all of them, each in constant time whatever its length."""
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, token) for token in self._tokens]
        return matches.index(True) if any(matches) else None

    def _refused(self, refusal: Refusal, address: str, route: str) -> Refusal:
        metrics.AUTH_FAILURES.labels(refusal.reason).inc()
        self._refusals.refused(address, route, refusal.reason)
        return refusal


class AuthMiddleware:
    """ASGI middleware that answers requests and sockets that are refused."""

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._auth.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        answer = refusal.response()
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
            return
        if scope["path"] == LIVE:  # so that a page of any origin can read why its socket was refused
            answer.headers["Access-Control-Allow-Origin"] = "*"
        await answer(scope, receive, send)


class GuessThrottle:
    """Makes addresses that guess tokens wait: remembers wrong tokens, the wait after them, and valid tokens.

    Both tables are bounded, so that clients cannot make them grow; a full one forgets the entry unused for longest.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        """By address: number of wrong tokens, time of the last one, end of the wait, in seconds of the clock."""
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()

    def wait_s(self, network: str) -> float:
        """Seconds that this address still has to wait; 0 if none."""
        now = self._clock()
        count, last, until = self._failures.get(network, (0, now, now))
        if count and now - last > _FORGET_S:
            del self._failures[network]
            return 0.0
        return max(0.0, until - now)

    def wrong(self, network: str) -> None:
        """Records a wrong token from an address that did not have to wait."""
        now = self._clock()
        count = self._failures.get(network, (0, now, now))[0] + 1
        wait_s = backoff_s(count - _FREE_FAILURES + 1, _FIRST_WAIT_S, _LONGEST_WAIT_S)
        _remember(self._failures, network, (count, now, now + wait_s))

    def right(self, network: str, token: int) -> None:
        """Records a valid token. The first one from an address clears its wrong tokens."""
        if not self.knows(network, token):
            self._failures.pop(network, None)
        _remember(self._known, (network, token), None)

    def knows(self, network: str, token: int | None) -> bool:
        """Whether this token was valid from this address before."""
        return token is not None and (network, token) in self._known

    def __len__(self) -> int:
        return len(self._failures) + len(self._known)


def _remember(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MAX_ADDRESSES:
        table.popitem(last=False)


class RefusalLog:
    """Logs refusals. The lines contain the client's path, host and origin, escaped and cut, but never a token.

    `refused` may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lines = TokenBucket(_LINES_PER_S, _LINES, clock)
        self._unlogged = 0
        self._explained: dict[tuple[str, str], float] = {}

    def refused(self, address: str, route: str, reason: str) -> None:
        """Logs one line per refusal, up to the rate."""
        with self._lock:
            if not self._lines.take():
                self._unlogged += 1
                return
            unlogged, self._unlogged = self._unlogged, 0
        if unlogged:
            log.warning("refused: %d more that were not logged separately", unlogged)
        log.warning("refused: address=%s route=%s reason=%s", _plain(address), _plain(route), reason)

    def explain(self, kind: str, of: str, message: str) -> None:
        """Logs a remedy for the operator, at most once a minute for each pair of `kind` and `of`."""
        now = self._clock()
        self._explained = {key: at for key, at in self._explained.items() if now - at < _EXPLAIN_EVERY_S}
        if (kind, of) in self._explained or sum(key[0] == kind for key in self._explained) >= _MAX_EXPLANATIONS:
            return
        self._explained[kind, of] = now
        log.warning("%s", message)


# --- what a request contains ---


def address_of(scope: Scope) -> str:
    """Address of the client: behind a trusted proxy, the one that the proxy names."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


def bearer(scope: Scope) -> str | None:
    """The token of the only `Authorization: Bearer` header."""
    given = _headers(scope, b"authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    try:
        return token.strip().encode("latin-1").decode()  # how clients send non-ASCII text
    except UnicodeError:
        return token.strip()


def _headers(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _open(path: str) -> bool:
    return path in _PAGES or path.startswith(_PAGE_FILES)


def _own_origin(scope: Scope) -> Origin | None:
    """Origin of the service's own page according to this request. X-Forwarded-Host is not trusted."""
    hosts = _headers(scope, b"host")
    host = read_host(hosts[0]) if len(hosts) == 1 else None
    scheme = str(scope["scheme"]).replace("ws", "http")
    return None if host is None else Origin(scheme, host.name, host.port or PORTS.get(scheme))


def _origin_of(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    return f"{scheme}{colon}{rest.partition('/')[0]}"


def _url(origin: Origin) -> str:
    port = "" if origin.port in (None, PORTS.get(origin.scheme)) else f":{origin.port}"
    return f"{origin.scheme}://{bracketed(origin.name)}{port}"


def _local(scope: Scope) -> bool:
    """Whether a request comes from this machine; one that a proxy forwards without naming its client does not."""
    forwarded = _headers(scope, b"x-forwarded-for")
    if forwarded and not forwarded[-1].rpartition(",")[2].strip():
        return False
    return scope.get("client") is None or _loopback(address_of(scope))


def _loopback(address: str) -> bool:
    """Whether a client's address is loopback."""
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = read.ipv4_mapped if isinstance(read, ipaddress.IPv6Address) else None
    return (mapped or read).is_loopback


def _network(address: str) -> str:
    """The network that counts as one client: an IPv4 address or an IPv6 /64."""
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return _plain(address)
    if isinstance(read, ipaddress.IPv4Address):
        return str(read)
    if read.ipv4_mapped is not None:
        return str(read.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(read) >> 64 << 64))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _shown(name: str, value: Sequence[str]) -> str:
    return f"{name}='{','.join(value)}'" if value else f"{name} is unset"


def _plain(text: str) -> str:
    """A client's text as one line of ASCII, cut to _MAX_ECHO characters."""
    return ascii(text[:_MAX_ECHO])[1:-1] + ("..." if len(text) > _MAX_ECHO else "")
