"""Names of objects, both ways."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.segments import keys
from app.segments.keys import MODES, Answer, SegmentId, SegmentKey

JOBS = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=64)
SEGMENTS = st.builds(SegmentKey, JOBS, st.integers(0, 99_999), st.sampled_from(MODES))


@given(SEGMENTS)
def test_what_is_built_is_read_back(segment: SegmentKey) -> None:
    assert keys.parse_input("in", keys.input_key(segment)) == segment
    assert keys.parse_output("out", keys.output_key(segment)) == segment.id
    assert keys.split_s3(keys.input_uri("in", segment)) == ("in", keys.input_key(segment))
    assert str(keys.split_file(keys.output_uri("/a b/ü%", segment))) == f"/a b/ü%/{keys.output_key(segment)}"


@given(st.text(max_size=80), st.sampled_from(["", "segments/", "jobs/", "async/"]))
def test_any_words_are_read_or_none(word: str, prefix: str) -> None:
    found = keys.parse_input("in", prefix + word)
    assert found is None or keys.input_key(found) == prefix + word
    output = keys.parse_output("out", prefix + word)
    assert output is None or keys.output_key(output) == prefix + word
    keys.parse_answer("out", prefix + word)


def test_the_names_of_a_job() -> None:
    segment = SegmentKey("clip-1", 7, "blur_faces")
    assert keys.input_uri("in", segment) == "s3://in/segments/clip-1/00007.blur_faces.mp4"
    assert keys.output_uri("out", segment) == "s3://out/jobs/clip-1/segments/00007.mp4"
    assert keys.beside(keys.output_uri("out", segment)) == "s3://out/jobs/clip-1/segments/00007.jsonl"
    assert keys.final_uri("/films", "clip-1") == "file:///films/jobs/clip-1/final.mp4"
    assert keys.final_results_uri("out", "clip-1") == "s3://out/jobs/clip-1/final.jsonl"
    assert keys.request_uri("in", "0" * 32) == f"s3://in/requests/{'0' * 32}.json"
    assert keys.parse_output("out", "jobs/clip-1/final.mp4") is None


@pytest.mark.parametrize(
    "key",
    [
        "segments/clip/0001.annotate.mp4",
        "segments/clip/00001.sepia.mp4",
        "segments/clip/00001.annotate.mp4/",
        "segments/c_lip/00001.annotate.mp4",
        "segments/../00001.annotate.mp4",
        f"segments/{'a' * 65}/00001.annotate.mp4",
        "segments/clip/00001.annotate.mp4\n",
        "xsegments/clip/00001.annotate.mp4",
    ],
)
def test_what_is_no_segment(key: str) -> None:
    assert keys.parse_input("in", key) is None


@pytest.mark.parametrize(
    ("job", "index", "mode"),
    [("", 0, "annotate"), ("a/b", 0, "annotate"), ("a", -1, "annotate"), ("a", 100_000, "annotate"), ("a", 0, "x")],
)
def test_a_segment_that_cannot_be(job: str, index: int, mode: keys.Mode) -> None:
    with pytest.raises(ValueError, match="should be"):
        SegmentKey(job, index, mode)


def test_a_segment_is_the_same_in_every_mode() -> None:
    assert {SegmentKey("a", 1, mode).id for mode in MODES} == {SegmentId("a", 1)}


def test_answers_of_sagemaker() -> None:
    name = "0123456789abcdef" * 2
    for key, failed in [
        (f"async/{name}.out", False),
        (f"async/some/folder/{name}.out", False),
        (f"async-failures/{name}.out", True),
        (f"async-failures/{name}-error.out", True),
        (f"async-failures/x-{name}", True),
    ]:
        assert keys.parse_answer("out", key) == Answer(name, failed), key
    for key in ("async/x.out", f"async/{name}0.out", f"else/{name}.out", f"async/{name}/x.out"):
        assert keys.parse_answer("out", key) is None, key


@pytest.mark.parametrize("address", ["s3://bucket", "s3:///key", "http://x/y", "bucket/key", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="should be s3://"):
        keys.split_s3(address)
    with pytest.raises(ValueError, match="should be file://"):
        keys.split_file(address)
