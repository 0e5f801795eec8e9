"""A real nginx with the shipped configuration: only ports, paths, the certificate and the upstream are replaced."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_blocking

from app.settings import ROOT
from tests.support.live import Live
from tests.support.service import Service

NAME = "sight.example"
"""The name that the shipped files carry."""
START_S = 20.0
_MAIN = """{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    {temporary}
    include /etc/nginx/mime.types;
    include {folder}/conf.d/*.conf;
}}
"""


def require(program: str) -> str:
    """The program's path; without it the test is skipped by name, or fails in CI."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        message = f"{program} is missing (Debian's package {program})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


@dataclass
class Proxy:
    """A running nginx."""

    https: int
    http: int
    folder: Path
    tls: ssl.SSLContext
    """Trusts its certificate."""
    process: subprocess.Popen[bytes]

    @property
    def error_log(self) -> str:
        return (self.folder / "error.log").read_text(errors="replace")

    def ask(
        self, method: str, path: str, *, host: str = "127.0.0.1", source: str = "127.0.0.1", **options: Any
    ) -> httpx.Response:
        """One HTTPS request to `NAME`, from a loopback address of one's own: limits count by address."""
        headers = {"Host": NAME, **options.pop("headers", {})}
        with httpx.Client(transport=httpx.HTTPTransport(verify=self.tls, local_address=source)) as client:
            url = f"https://{host}:{self.https}{path}"
            return client.request(
                method, url, headers=headers, extensions={"sni_hostname": NAME}, timeout=60, **options
            )

    @asynccontextmanager
    async def opened(
        self, service: Service, *, source: str = "127.0.0.1", headers: dict[str, str] | None = None
    ) -> AsyncIterator[Live]:
        """A socket over wss to the service behind, on which nothing was said yet."""
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 5}
        where = {"host": "127.0.0.1", "port": self.https, "local_addr": (source, 0), "ssl": self.tls}
        async with connect(
            f"wss://{NAME}/ws/inference", additional_headers=headers, proxy=None, **where, **options
        ) as connection:
            yield Live(connection, service)

    def opened_plainly(self) -> ClientConnection:
        """The same for threads, without any keepalive of its own: what it does not say is not said."""
        plain = socket.create_connection(("127.0.0.1", self.https))
        url = f"wss://{NAME}/ws/inference"
        return connect_blocking(url, sock=plain, ssl=self.tls, ping_interval=None, compression=None, proxy=None)

    def workers(self) -> set[int]:
        """Those that serve, the outgoing among them; its cache's own two processes come and go."""
        found = set()
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if " ".join(child.cmdline()).startswith("nginx: worker process"):
                    found.add(child.pid)
        return found

    def reload(self) -> None:
        """SIGHUP; returns once a new worker has taken over."""
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + START_S
        while not self.workers() - before:
            assert time.monotonic() < deadline, self.error_log
            time.sleep(0.02)


@contextmanager
def running_nginx(folder: Path, upstream: int, replace: dict[str, str] | None = None) -> Iterator[Proxy]:
    """nginx with the shipped files in front of `127.0.0.1:upstream`, until the block ends.

    Args:
        replace: further replacements, for tests that want to see the shipped lines matter.
    """
    program = require("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = self_signed(folder)
    tls = ssl.create_default_context(cafile=certificate)
    arguments = [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    for left in (2, 1, 0):
        https, http = free_ports(2)
        write_configuration(folder, https=https, http=http, upstream=upstream, replace=replace or {})
        checked = subprocess.run([*arguments, "-t"], capture_output=True, text=True, timeout=START_S, check=False)
        taken = "Address already in use" in checked.stderr
        assert checked.returncode == 0 or (taken and left), checked.stderr
        process = subprocess.Popen(arguments)
        if _comes_up(process, https, http, tls):
            break
        process.wait(START_S)
        assert left, (folder / "error.log").read_text()  # else somebody else has got a port meanwhile
    try:
        yield Proxy(https, http, folder, tls, process)
    finally:
        process.terminate()  # at once, open sessions or not
        process.wait(START_S)
        key.unlink()


def _comes_up(process: subprocess.Popen[bytes], https: int, http: int, tls: ssl.SSLContext) -> bool:
    """Whether nginx itself answers there, by its own certificate; False once it has ended."""
    deadline = time.monotonic() + START_S
    while process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", https), timeout=5) as plain:
                tls.wrap_socket(plain, server_hostname=NAME).close()
        except OSError:
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.02)
            continue
        return listens(http)
    return False


def write_configuration(folder: Path, *, https: int, http: int, upstream: int, replace: dict[str, str]) -> None:
    """`nginx.conf` as any host has one, and the two shipped files with a few words replaced."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""  # the folder is its owner's alone
    (folder / "nginx.conf").write_text(_MAIN.format(user=user, folder=folder, temporary=temporary))
    (folder / "conf.d").mkdir(exist_ok=True)
    (folder / "acme" / ".well-known" / "acme-challenge").mkdir(parents=True, exist_ok=True)
    ipv6 = can_bind("::1")
    replace = {
        "listen      443 ": f"listen 127.0.0.1:{https} ",
        "listen      [::]:443 ": f"listen [::1]:{https} " if ipv6 else "# ",
        "listen      80": f"listen 127.0.0.1:{http}",
        "listen      [::]:80": f"listen [::1]:{http}" if ipv6 else "# ",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
        "/etc/letsencrypt/live/sight.example/fullchain.pem": f"{folder}/certificate.pem",
        "/etc/letsencrypt/live/sight.example/privkey.pem": f"{folder}/key.pem",
        "/var/lib/nginx/sightline": f"{folder}/cache",
        "/var/www/acme": f"{folder}/acme",
        **replace,
    }
    shipped = {name: (ROOT / "nginx" / name).read_text() for name in ("backend.conf", "http_redirect.conf")}
    for old, new in replace.items():
        assert any(old in text for text in shipped.values()), f"nginx/*.conf have no {old!r} any more"
        shipped = {name: text.replace(old, new) for name, text in shipped.items()}
    for name, text in shipped.items():
        (folder / "conf.d" / name).write_text(text)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for `NAME` and its key, by openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return certificate, key


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def can_bind(address: str) -> bool:
    """Whether this machine has the address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
