"""Writes real videos: a moving photograph with a 440 Hz tone, encoded as cameras do – key frames, B-frames, AAC."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.support.clip import Pixels, scene

TONE_HZ = 440.0
SAMPLE_RATE = 44100


def picture(number: int, width: int, height: int) -> Pixels:
    """Frame `number`: a window that moves over the photograph and back; the face and shoulders stay in it."""
    whole = scene()
    swing = abs(number % 60 - 30)
    x = min(40 + 4 * swing, whole.shape[1] - width)
    y = min(2 * swing, whole.shape[0] - height)
    return np.ascontiguousarray(whole[y : y + height, x : x + width])


def movie(
    path: Path,
    *,
    seconds: float = 3.0,
    fps: int = 25,
    width: int = 320,
    height: int = 240,
    sound_s: float | None = -1.0,
    rotation: int = 0,
    hflip: bool = False,
    times_ms: Sequence[int] | None = None,
    key_every: int | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """Writes a video in the container that the path's suffix names.

    Args:
        sound_s: seconds of audio; None: no audio; negative: as long as the frames.
        rotation: degrees counter-clockwise by which the file asks players to turn it.
        hflip: whether the file asks players to mirror it after that.
        times_ms: when each frame is shown, for a variable rate; replaces `seconds` and `fps`.
        key_every: frames from one key frame to the next; None: those of a second.
        options: options of the encoder.
    """
    plain = [Fraction(i, fps) for i in range(round(seconds * fps))]
    times = [Fraction(time_ms, 1000) for time_ms in times_ms] if times_ms else plain
    unit = Fraction(1, 1000) if times_ms else Fraction(1, fps)
    encoder = {"preset": "ultrafast", "bf": "2", "sc_threshold": "0"} if codec == "libx264" else {}
    encoder |= {"g": str(key_every or fps), **options}
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=fps, options=encoder)
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = unit
        if rotation or hflip:
            video.set_display_rotation(rotation, hflip=hflip)
        if sound_s is not None:
            sound: Any = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=_rate(path))
            sound.layout = "mono"
        container.start_encoding()
        for number, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(at / unit), unit
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound_s is not None:
            length = float(times[-1] + Fraction(1, fps)) if sound_s < 0 else sound_s
            container.mux([packet for frame in tone(length, _rate(path)) for packet in sound.encode(frame)])
            container.mux(sound.encode(None))
    return path


def tone(seconds: float, rate: int = SAMPLE_RATE) -> list[Any]:
    """Audio frames of 1024 samples, mono float."""
    at = np.arange(round(seconds * rate)) / rate
    wave = (0.3 * np.sin(2 * np.pi * TONE_HZ * at)).astype(np.float32)
    frames = []
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        frames.append(frame)
    return frames


def _rate(path: Path) -> int:
    return 48000 if path.suffix == ".webm" else SAMPLE_RATE  # Opus has no 44,100 Hz


def shown(path: Path) -> list[tuple[float, Pixels]]:
    """Every decoded frame: its time in seconds and its pixels, RGB, without the file's rotation."""
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def heard(path: Path) -> tuple[float, Pixels]:
    """When the audio begins, seconds, and its samples, mono float."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return float(frames[0].time), np.concatenate([frame.to_ndarray()[0] for frame in frames])


def packets(path: Path) -> dict[str, list[tuple[int, int, bytes]]]:
    """Presentation time, decoding time (in the stream's unit) and bytes of every packet, by kind of stream."""
    found: dict[str, list[tuple[int, int, bytes]]] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.pts is not None and packet.dts is not None:
                found.setdefault(packet.stream.type, []).append((packet.pts, packet.dts, bytes(packet)))
    return found
