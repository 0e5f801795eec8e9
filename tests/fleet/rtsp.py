"""A network camera: repeats a video over RTSP (RFC 2326), by TCP or UDP, for clients that know the password."""

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
_START_S = 20.0


@contextmanager
def camera(film: Path, folder: Path, *, udp: bool = False, password: str = PASSWORD) -> Iterator[str]:
    """Serves until the block ends; yields the URL with its password. `ffmpeg` cuts the video into RTP packets.

    Args:
        udp: whether it sends by UDP and by nothing else.
    """
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
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(0.2)
        ended = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, packets, sdp.read_bytes(), ended, udp, password))
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield f"rtsp://{USER}:{password}@127.0.0.1:{listener.getsockname()[1]}/live"


def _serve(
    listener: socket.socket, packets: socket.socket, sdp: bytes, ended: threading.Event, udp: bool, password: str
) -> None:
    """Serves clients one after the other."""
    wanted = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
    while not ended.is_set():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        with client, socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            client.settimeout(_START_S)
            port = _greet(client, sdp, wanted, sender.getsockname()[1] if udp else None)
            if port is not None:
                _play(client, sender, port, packets, ended)


def _greet(client: socket.socket, sdp: bytes, wanted: str, sends_from: int | None) -> int | None:
    """Answers requests up to PLAY; gives the client's UDP port, 0 for the connection itself, None without a PLAY."""
    port = 0
    with client.makefile("rb") as requests:
        while line := requests.readline():
            method = line.split()[0].decode()
            fields = dict(line.decode().strip().split(": ", 1) for line in iter(requests.readline, b"\r\n"))
            more, body, status = "", b"", "200 OK"
            asked = fields.get("Transport", "")
            if method != "OPTIONS" and fields.get("Authorization") != wanted:
                status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif method == "DESCRIBE":
                body = sdp + b"a=control:track\r\n"
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP" and ("/TCP" in asked) == (sends_from is not None):
                status = "461 Unsupported Transport"
            elif method == "SETUP" and sends_from is not None:
                port = int(asked.partition("client_port=")[2].partition("-")[0])
                pair = f"client_port={port}-{port + 1};server_port={sends_from}-{sends_from + 1}"
                more = f"Transport: RTP/AVP;unicast;{pair}\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            head = f"RTSP/1.0 {status}\r\nCSeq: {fields['CSeq']}\r\nSession: 1\r\n{more}\r\n"
            client.sendall(head.encode() + body)
            if method == "PLAY" and status == "200 OK":
                return port
    return None


def _play(
    client: socket.socket, sender: socket.socket, port: int, packets: socket.socket, ended: threading.Event
) -> None:
    """Packets on channel 0, or to a UDP port, until the client goes, or the camera does."""
    client.settimeout(0.01)
    while not ended.is_set():
        try:
            packet = packets.recv(65536)
            if port:
                sender.sendto(packet, ("127.0.0.1", port))
                if _has_gone(client):
                    return
            else:
                client.settimeout(_START_S)
                client.sendall(b"$\0" + len(packet).to_bytes(2) + packet)
        except TimeoutError:
            continue
        except OSError:
            return


def _has_gone(client: socket.socket) -> bool:
    """Whether the client hung up or sent TEARDOWN; while it plays, a client by UDP sends only keepalives."""
    client.setblocking(False)
    try:
        said = client.recv(65536)
    except BlockingIOError:
        return False
    return not said or b"TEARDOWN" in said
