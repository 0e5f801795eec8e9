"""Addresses taken apart: what is opened, what may be shown, which id; files are files, names are names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.fleet.ingest import from_argument
from app.sources.address import AddressRefused, checked_name, parse, redact, slug, split_name

S = "hunter2"
"""The secret of every URL here."""


@pytest.mark.parametrize(
    ("url", "shown", "name"),
    [
        (f"rtsp://10.0.0.7/live?user=admin&password={S}", "rtsp://10.0.0.7/live?…", "10.0.0.7-live"),
        (f"rtsp://cam/user=admin&password={S}", "rtsp://cam/…", "cam"),
        (f"rtsp://cam:554/user=admin_password={S}_channel=1_stream=0.sdp?real_stream", "rtsp://cam:554/…?…", "cam-554"),
        (f"rtsp://cam/user=admin&password=a/{S}&channel=1", "rtsp://cam/…", "cam"),
        (f"rtsp://cam/%75ser%3Dadmin%26password%3D{S}", "rtsp://cam/…", "cam"),
        (f"rtsp://cam/live;user=admin;password={S}", "rtsp://cam/…", "cam"),
        (f"rtsp://admin:{S}@10.0.0.7/live", "rtsp://10.0.0.7/live", "10.0.0.7-live"),
        (f"rtsp://admin:p/w{S}@10.0.0.7:554/live", "rtsp://10.0.0.7:554/live", "10.0.0.7-554-live"),
        (f"rtsp://admin:p@ss{S}@cam/live", "rtsp://cam/live", "cam-live"),
        (f"rtsp://admin:p@ss/{S}@10.0.0.7/live", "rtsp://10.0.0.7/live", "10.0.0.7-live"),
        (f"rtsp://admin:12/34{S}@10.0.0.7/live", "rtsp://10.0.0.7/live", "10.0.0.7-live"),
        (f"rtsp://admin:12/34{S}@cam/live", "rtsp://…@cam/live", "cam-live"),
        (f"rtsp://admin:p?{S}@cam/live", "rtsp://cam/live", "cam-live"),
        (f"rtsp://admin:p#{S}@cam/live", "rtsp://cam/live", "cam-live"),
        (f"rtsp://admin:p w{S}@cam/live", "rtsp://cam/live", "cam-live"),
        (f"rtsp://admin:{S}@[fe80::1]:554/live", "rtsp://[fe80::1]:554/live", "fe80-1-554-live"),
        (f"RTSP://ADMIN:{S}@cam/live?PASSWORD={S}", "rtsp://cam/live?…", "cam-live"),
        (f"srt://cam:9000?passphrase={S}&streamid=x", "srt://cam:9000?…", "cam-9000"),
        (f"srt://cam:9000/?mode=caller&PassPhrase={S}", "srt://cam:9000/?…", "cam-9000"),
        (f"http://cam/v.m3u8?token={S}", "http://cam/v.m3u8?…", "cam-v.m3u8"),
        (f"http://cam/v.m3u8#token={S}", "http://cam/v.m3u8", "cam-v.m3u8"),
        (f"http://cam/cgi-bin/mjpg/video.cgi?usr=me&pwd={S}", "http://cam/cgi-bin/mjpg/video.cgi?…", None),
        (f"https://b.s3.amazonaws.com/a.mp4?X-Amz-Signature={S}", "https://b.s3.amazonaws.com/a.mp4?…", None),
        (f"rtmp://live.example.org/app/{S}", "rtmp://live.example.org/app/…", "live.example.org-app"),
        (f"http://tv.example.org/live/me/{S}/7.ts", "http://tv.example.org/live/…/…/7.ts", None),
        (f"http://cam/token/{S}/x.m3u8", "http://cam/token/…/x.m3u8", None),
        (f"rtsp://cam/user/me/password/{S}/1", "rtsp://cam/user/…/password/…/1", "cam-user-password-1"),
        (f"http://cam/tokens/{S}/x.m3u8", "http://cam/tokens/…/x.m3u8", None),
        (f"http://cam/streamkey/{S}", "http://cam/streamkey/…", None),
        ("rtsp://cam/compass/1", "rtsp://cam/compass/1", "cam-compass-1"),
        ("rtsp://cam/monkey/1", "rtsp://cam/monkey/1", "cam-monkey-1"),
        (f"rtsp://nvr.local/ch1?user=me@example.org&pwd={S}", "rtsp://nvr.local/ch1?…", "nvr.local-ch1"),
    ],
)
def test_b4_no_secret_of_a_url_is_shown_or_in_the_id(url: str, shown: str, name: str | None) -> None:
    address = parse(url)
    assert address.shown == shown
    assert name in (None, address.name)
    source = from_argument(url)
    for text in (address.shown, address.name, repr(address), repr(source), source.camera_id, source.shown, redact(url)):
        assert S not in text
    assert S not in address.redact(f"Error opening {url}: refused ({address.text})")
    assert (S in address.text) == (S in url)  # it is opened with it


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("rtsp://admin:p/w@10.0.0.7/live", "rtsp://admin:p%2Fw@10.0.0.7/live"),
        ("rtsp://admin:p@ss@cam/live", "rtsp://admin:p%40ss@cam/live"),
        ("rtsp://admin:p?w#x@cam/live", "rtsp://admin:p%3Fw%23x@cam/live"),
        ("rtsp://cam:554/live@2", "rtsp://cam:554/live@2"),
        ("rtsp://10.0.0.7:554/live@2?x=y@z", "rtsp://10.0.0.7:554/live@2?x=y@z"),
        ("http://cam/a?user=me@example.org", "http://cam/a?user=me@example.org"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234"),
    ],
)
def test_b4_what_is_opened_has_the_whole_password_and_the_host_behind_its_last_at(url: str, opened: str) -> None:
    assert parse(url).text == opened


def test_b4_a_text_of_others_loses_the_secrets_of_the_urls_in_it() -> None:
    text = f"cannot open 'rtsp://a:{S}@h/x?token={S}', password={S}, Authorization: Basic {S}; {{'passphrase': '{S}'}}"
    assert S not in redact(text)
    assert redact("12 frames in 3 s: see /films/a.mp4") == "12 frames in 3 s: see /films/a.mp4"


def test_b4_cameras_of_a_unifi_share_are_not_told_by_the_token_in_their_path() -> None:
    address = parse("rtsps://192.168.1.1:7441/s4qJ0xkLbXbTnFuz?enableSrtp")
    assert (address.shown, address.name) == ("rtsps://192.168.1.1:7441/…?…", "192.168.1.1-7441")
    for path in ("h264Preview_01_main", "Streaming/Channels/101", "cam/realmonitor", "axis-media/media.amp"):
        assert parse(f"rtsp://cam/{path}").shown == f"rtsp://cam/{path}"


@pytest.mark.parametrize("url", ["rtsp://cam:99999/x", f"rtsp://admin:{S}@ho st/x", f"rtsp://admin:{S}@/x y@"])
def test_b4_a_url_without_a_host_is_refused_without_its_secret(url: str) -> None:
    try:
        shown = parse(url).shown
    except AddressRefused as error:
        shown = str(error)
        assert "%40" in shown
    assert S not in shown


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("Front Door=rtsp://cam/1", "Front Door", "rtsp://cam/1"),
        ("a=b=rtsp://cam/1?x=y", "a=b", "rtsp://cam/1?x=y"),
        ("मुख्य द्वार=rtsp://cam/1", "मुख्य द्वार", "rtsp://cam/1"),
        ("cafe\u0301=rtsp://cam/1", "café", "rtsp://cam/1"),
        ("البوابة=2", "البوابة", "/dev/video2"),
        ("🚪 hall=films/a.mp4", "🚪 hall", "films/a.mp4"),
        ("-x=films/a.mp4", "-x", "films/a.mp4"),
        ("12:30=films/a.mp4", "12:30", "films/a.mp4"),
    ],
)
def test_c16_a_name_before_an_address_is_the_id(text: str, name: str, address: str) -> None:
    source = from_argument(text)
    assert (source.camera_id, source.address) == (name, address)


def test_c16_what_is_there_as_a_file_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:00.mp4", "a=b.mp4", "x=y=z.mp4", "-film.mp4", "cafe\u0301=1.mp4", "50%d.mp4", "[*].mp4"):
        Path(name).touch()
        assert split_name(name) == (None, name)
        address = parse(name)
        assert (address.kind, address.text, address.shown) == ("file", name, name)
        assert split_name(f"Hall={name}") == ("Hall", name)
    assert from_argument("a=b.mp4").camera_id == "a-b"
    assert parse("x" * 5000).kind == "file"


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 129, "a\nb", "a\0b", "a\udcffb", "a\u202eb", "rtsp://admin:hunter2@h/x"]
)
def test_c16_a_name_that_cannot_be_shown_is_refused_in_words_that_can(name: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        checked_name(name)
    assert str(caught.value).isprintable()
    assert S not in str(caught.value)


def test_c16_ids_of_files_are_told_apart_and_can_be_shown() -> None:
    broken = [os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8")]
    assert slug(broken[0]) != slug(broken[1])
    long = ["x" * 200 + "a", "x" * 200 + "b"]
    assert slug(long[0]) != slug(long[1])
    for name in (*broken, *long):
        assert len(checked_name(slug(name))) <= 128
    assert slug("cafe\u0301") == slug("café") == "café"
    assert slug("मुख्य द्वार") == "मुख्य-द्वार"
    assert slug("👩‍🔧") == "👩‍🔧"
