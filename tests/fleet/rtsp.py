"""A network camera: a film for ever over RTSP, to whoever knows the password (RFC 2326, RTP inside the connection)."""

from __future__ import annotations

import base64
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.redis import require_program

USER, PASSWORD = "admin", "hunter2"
_WANTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_START_S = 20.0


@contextmanager
def camera(film: Path, folder: Path) -> Iterator[str]:
    """Its URL, password and all; it is gone when the block ends. `ffmpeg` cuts the film into RTP packets."""
    require_program("ffmpeg", "ffmpeg")
    folder.mkdir()
    with ExitStack() as stack:
        packets = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        packets.bind(("127.0.0.1", 0))
        packets.settimeout(0.2)
        target, sdp = f"rtp://127.0.0.1:{packets.getsockname()[1]}?pkt_size=1200", folder / "film.sdp"
        command = ["ffmpeg", "-nostdin", "-loglevel", "warning", "-re", "-stream_loop", "-1", "-i", str(film)]
        with (folder / "ffmpeg.log").open("wb") as log:
            child = subprocess.Popen([*command, "-c", "copy", "-f", "rtp", "-sdp_file", str(sdp), target], stderr=log)
        stack.callback(child.wait)
        stack.callback(child.kill)
        deadline = time.monotonic() + _START_S
        while not sdp.exists() or not sdp.read_bytes().endswith(b"\n"):
            assert time.monotonic() < deadline, (folder / "ffmpeg.log").read_text()
            time.sleep(0.05)
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        door.settimeout(0.2)
        ended = threading.Event()
        thread = threading.Thread(target=_serve, args=(door, packets, sdp.read_bytes(), ended))
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{door.getsockname()[1]}/live"


def _serve(door: socket.socket, packets: socket.socket, sdp: bytes, ended: threading.Event) -> None:
    """One client after the other."""
    while not ended.is_set():
        try:
            client, _ = door.accept()
        except TimeoutError:
            continue
        with client:
            client.settimeout(_START_S)
            if _greet(client, sdp):
                _play(client, packets, ended)


def _greet(client: socket.socket, sdp: bytes) -> bool:
    """Answers requests up to PLAY; whether it came to that."""
    with client.makefile("rb") as requests:
        while line := requests.readline():
            method = line.split()[0].decode()
            fields = dict(one.decode().strip().split(": ", 1) for one in iter(requests.readline, b"\r\n"))
            more, body, status = "", b"", "200 OK"
            if method != "OPTIONS" and fields.get("Authorization") != _WANTED:
                status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif method == "DESCRIBE":
                body = sdp + b"a=control:track\r\n"
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            head = f"RTSP/1.0 {status}\r\nCSeq: {fields['CSeq']}\r\nSession: 1\r\n{more}\r\n"
            client.sendall(head.encode() + body)
            if method == "PLAY" and status == "200 OK":
                return True
    return False


def _play(client: socket.socket, packets: socket.socket, ended: threading.Event) -> None:
    """Packets on channel 0 until the client goes, or the camera does."""
    while not ended.is_set():
        try:
            packet = packets.recv(65536)
            client.sendall(b"$\0" + len(packet).to_bytes(2) + packet)
        except TimeoutError:
            continue
        except OSError:
            return
