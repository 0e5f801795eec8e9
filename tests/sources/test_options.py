"""Options of a source: what is taken, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from app.errors import ConfigurationError
from app.fleet.ingest import from_entry, from_hash, from_yaml
from app.sources.options import Options, from_pairs


def test_d10_options_in_yaml_and_in_redis_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(
        "- {source: 'rtsp://cam/1', name: Front Door, type: gate, transport: udp, rotation: 180, fps: 5, "
        "options: {user_agent: VLC, buffer_size: 1000000, tcp_nodelay: true}}\n"
    )
    (source,) = from_yaml(path)
    wanted = Options("udp", (("buffer_size", "1000000"), ("tcp_nodelay", "1"), ("user_agent", "VLC")), 180, 5.0)
    assert (source.camera_id, source.options, source.camera_type) == ("Front Door", wanted, "gate")
    entry = {
        "source": "rtsp://cam/1",
        "type": "gate",
        "transport": "udp",
        "rotation": 180,
        "fps": 5,
        "options": {"user_agent": "VLC", "buffer_size": 1000000, "tcp_nodelay": True},
    }
    (found,), problems = from_hash("fleet:sources", {b"Front Door": orjson.dumps(entry)})
    assert (found, problems) == (source, [])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{source: 'rtsp://cam/1', transport: upd}", ["transport is 'upd'", "tcp", "udp"]),
        ("{source: a.mp4, transport: udp}", ["transport", "rtsp://", "file"]),
        ("{source: 'rtsp://cam/1', rotation: 45}", ["rotation is 45", "0, 90, 180 or 270"]),
        ("{source: 'rtsp://cam/1', rotation: true}", ["rotation is True"]),
        ("{source: 'rtsp://cam/1', fps: 0}", ["fps is 0", "above 0"]),
        ("{source: 'rtsp://cam/1', fps: .nan}", ["fps is nan"]),
        ("{source: 'rtsp://cam/1', fps: fast}", ["fps is 'fast'"]),
        ("{source: 'rtsp://cam/1', options: [x]}", ["options is ['x']", "mapping"]),
        (
            "{source: 'rtsp://cam/1', options: {protocol_whitelist: 'file,crypto'}}",
            ["'protocol_whitelist'", "user_agent"],
        ),
        ("{source: 'http://cam/1', options: {ca_file: /etc/passwd}}", ["'ca_file'"]),
        ("{source: 'rtsp://cam/1', options: {user_agnt: x}}", ["'user_agnt'", "did you mean user_agent"]),
        ("{source: 'rtsp://cam/1', options: {rtsp_transport: udp}}", ["rtsp_transport", "`transport`"]),
        ("{source: 'rtsp://cam/1', options: {probesize: 99999999999}}", ["probesize", "at most 100,000,000"]),
        ("{source: 'srt://cam:1', options: {passphrase: [hunter2]}}", ["passphrase", "list"]),
        ("{source: 'rtsp://cam/1', rotate: 90}", ["'rotate'", "rotation"]),
    ],
)
def test_d10_a_wrong_option_names_file_entry_key_value_and_what_is_right(
    tmp_path: Path, entry: str, said: list[str]
) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(f"good: /films/a.mp4\ngate: {entry}\n")
    with pytest.raises(ConfigurationError) as caught:
        from_yaml(path)
    for word in (str(path), "entry 2", "source gate", *said):
        assert word in str(caught.value), str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_b4_a_broken_list_is_named_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    for text in (
        "gate: rtsp://admin:hunter2@h/x: y\n",
        "gate: 'rtsp://admin:hunter2@h/x\n",
        "gate: [rtsp://admin:hunter2@h/x]\n",
        "rtsp://admin:hunter2@h/x: y\n",
        "gate: {source: {url: 'rtsp://h/x?password=hunter2'}}\n",
        "gate: {source: 'gopher://h/x?password=hunter2'}\n",
        "- {id: 'rtsp://admin:hunter2@h/x', source: a.mp4}\n",
        '- {id: "a\\nb", source: "rtsp://admin:hunter2@h/x"}\n',
        "'rtsp://admin:hunter2@h/x'\n",
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            from_yaml(path)
        assert str(path) in str(caught.value)
        assert "hunter2" not in str(caught.value), text


def test_b4_two_cameras_that_differ_in_the_query_alone_ask_for_names(tmp_path: Path) -> None:
    from app.fleet.ingest import SourceList

    urls = ["rtsp://nvr/cam?channel=1&password=hunter2", "rtsp://nvr/cam?channel=2&password=hunter2"]
    with pytest.raises(ConfigurationError) as caught:
        SourceList(urls, "fleet:sources")
    assert "two sources have the id 'nvr-cam'" in str(caught.value)
    assert "NAME=SOURCE" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    SourceList([f"one={urls[0]}", f"two={urls[1]}"], "fleet:sources")


def test_d10_options_of_a_command_line() -> None:
    assert from_pairs(["user_agent=VLC=3", "probesize=1"]) == {"user_agent": "VLC=3", "probesize": "1"}
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        from_pairs(["user_agent"])
    with pytest.raises(ConfigurationError):
        from_entry("x", {"source": "rtsp://cam/1", "options": {"headers": "a\0b"}})
