"""Observations: numbered ones that can be told apart after folding, and any that hypothesis can think of."""

from __future__ import annotations

from hypothesis import strategies as st

from app.summary import Entity, Movement, ObjectCount, Observation


def observed(number: int, frames: int = 1, text: str = "") -> Observation:
    """The `number`-th second of a session, one frame each unless said otherwise."""
    return Observation(
        first_frame_id=number,
        last_frame_id=number + frames - 1,
        started_at_ms=number * 1000.0,
        ended_at_ms=number * 1000.0 + 900,
        frames=frames,
        objects=(ObjectCount("person", 2, frames, 2 * frames, 1800 * frames),),
        arrived=(Entity(number, "person"),),
        arrivals=1,
        poses=("standing",),
        new_texts=(text or f"sign {number}",),
        texts=1,
        motion=Movement(frames=frames, some=frames),
    )


def covered(observations: list[Observation]) -> list[int]:
    """Frame ids that observations made by `observed` cover, in their order."""
    ids: list[int] = []
    for observation in observations:
        ids.extend(range(observation.first_frame_id, observation.last_frame_id + 1))
        assert observation.frames == observation.last_frame_id + 1 - observation.first_frame_id
    return ids


_counts = st.integers(0, 10**6)
_words = st.text(st.characters(codec="utf-8"), max_size=12)
_tracks = st.lists(
    st.builds(Entity, st.integers(1, 60), st.sampled_from(("person", "dog", "car"))), max_size=40, unique=True
)
_objects = st.lists(
    st.builds(ObjectCount, _words, _counts, _counts, st.integers(1, 10**6), _counts),
    max_size=5,
    unique_by=lambda count: count.class_name,
)

observations = st.builds(
    Observation,
    first_frame_id=_counts,
    last_frame_id=_counts,
    started_at_ms=st.floats(0, 2e12),
    ended_at_ms=st.floats(0, 2e12),
    frames=st.integers(1, 10**6),
    objects=_objects.map(tuple),
    arrived=_tracks.map(lambda tracks: tuple(tracks[:32])),
    arrivals=_counts,
    left=_tracks.map(lambda tracks: tuple(tracks[:32])),
    departures=_counts,
    poses=st.lists(st.sampled_from(("standing", "sitting", "lying")), unique=True).map(tuple),
    new_texts=st.lists(_words, max_size=16, unique=True).map(tuple),
    texts=_counts,
    motion=st.builds(Movement, *[st.integers(-(10**6), 10**6)] * 9),
    failed=st.lists(st.sampled_from(("detect", "pose", "ocr")), unique=True).map(tuple),
)
