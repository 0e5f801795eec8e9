"""Photographs panned by known amounts, things moved over them, and pictures that do not move."""

import base64
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from app.pipeline.decode import decode_grey
from app.pipeline.jpeg import inspect
from app.pipeline.motion import Flow, measure, obstacle

WIDTH, HEIGHT = 640, 480
PHOTOS = {}
for name in ("astronaut", "coffee", "chelsea"):
    picture = getattr(data, name)()
    scale = max(900 / picture.shape[1], 720 / picture.shape[0])
    PHOTOS[name] = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
ROUND = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]


def shown(name, dx=0, dy=0):
    """The photograph's middle, 640x480, its contents moved by dx, dy."""
    photo = PHOTOS[name]
    top, left = (photo.shape[0] - HEIGHT) // 2 - dy, (photo.shape[1] - WIDTH) // 2 - dx
    return np.ascontiguousarray(photo[top : top + HEIGHT, left : left + WIDTH])


def grey(pixels):
    """As the service sees it: JPEG at quality 80, decoded small and grey."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    jpeg = file.getvalue()
    return decode_grey(jpeg, inspect(jpeg, max_bytes=1 << 24, max_pixels=1 << 24))


def motion(before, after, method="dis", grid=False):
    first, second = grey(before), grey(after)
    height, width = before.shape[:2]
    return measure(Flow(method)(first, second), first, width=width, height=height, grid=grid)


def apart(a, b):
    """Degrees between two directions."""
    return abs((a - b + 180) % 360 - 180)


def angle(dx, dy):
    return np.degrees(np.arctan2(dy, dx)) % 360


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("pixels", [4, 9, 16, 24])
def test_a_pan_is_the_cameras_motion(name, method, pixels):
    for x, y in ROUND:
        dx, dy = (round(pixels * side / np.hypot(x, y)) for side in (x, y))
        found = motion(shown(name), shown(name, dx, dy), method)
        camera = found.camera
        assert apart(angle(camera.dx, camera.dy), angle(dx, dy)) < 10
        assert np.hypot(camera.dx, camera.dy) == pytest.approx(np.hypot(dx, dy), rel=0.15)
        assert found.moving_fraction < 0.2
        assert found.score < 0.004


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("pan", [(0, 0), (9, -6)])
@pytest.mark.parametrize("pixels", [6, 14, 24])
def test_a_thing_that_moves_has_a_direction_whatever_the_camera_does(method, pan, pixels):
    thing = cv2.resize(data.astronaut()[0:200, 130:330], (200, 200))
    for x, y in ROUND:
        dx, dy = (round(pixels * side / np.hypot(x, y)) for side in (x, y))
        before, after = shown("chelsea"), shown("chelsea", *pan)
        before[140:340, 220:420] = thing
        left, top = 220 + dx + pan[0], 140 + dy + pan[1]
        after[top : top + 200, left : left + 200] = thing
        found = motion(before, after, method)
        assert found.direction_deg is not None
        assert apart(found.direction_deg, angle(dx, dy)) < 10
        # The thing covers 13% of the picture.
        assert 0.06 < found.moving_fraction < 0.35
        # What it covers and uncovers is dragged along.
        share = 0.13 * np.hypot(dx, dy) / 800
        assert 0.7 * share < found.score < 2 * share
        assert np.hypot(found.camera.dx - pan[0], found.camera.dy - pan[1]) < 2


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("name", PHOTOS)
def test_a_still_picture_does_not_move(name, method):
    found = motion(shown(name), shown(name), method)
    assert found.direction_deg is None
    assert found.moving_fraction < 0.01
    assert found.score < 1e-4
    assert abs(found.camera.dx) + abs(found.camera.dy) < 0.05


@pytest.mark.parametrize("name", PHOTOS)
def test_neither_does_a_noisy_or_a_brighter_one(name):
    random = np.random.default_rng(0)
    noisy = [np.clip(shown(name) + random.normal(0, 4, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    found = motion(*noisy)
    assert found.direction_deg is None
    assert found.moving_fraction < 0.01
    brighter = motion(shown(name), cv2.add(shown(name), (12, 12, 12, 0)))
    assert brighter.moving_fraction < 0.02
    assert np.hypot(brighter.camera.dx, brighter.camera.dy) < 0.5


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_what_has_no_texture_does_not_move(method):
    random = np.random.default_rng(0)
    wall = [np.clip(128 + random.normal(0, 5, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    night = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for before, after in (wall, (night, night), (night, wall[0])):
        found = motion(before, after, method, grid=True)
        assert (found.score, found.direction_deg, found.moving_fraction) == (0, None, 0)
        assert (found.camera.dx, found.camera.dy) == (0, 0)


def cells(grid):
    flat = np.frombuffer(base64.b64decode(grid.data), np.int8).reshape(grid.rows, grid.columns, 2)
    return flat * grid.scale


def test_the_grid_is_the_flow_in_pixels_with_the_cameras_in_it():
    grid = motion(shown("chelsea"), shown("chelsea", 12, -8), grid=True).grid
    assert (grid.columns, grid.rows, grid.scale) == (20, 15, 0.25)
    assert np.median(cells(grid), axis=(0, 1)) == pytest.approx((12, -8), abs=1)
    assert motion(shown("chelsea"), shown("chelsea")).grid is None


def test_the_grids_unit_grows_so_that_nothing_overflows():
    flow = np.zeros((120, 160, 2), np.float32)
    flow[:60, :, 0], flow[60:, :, 1] = 25, -40
    grid = measure(flow, grey(shown("coffee")), width=640, height=480, grid=True).grid
    assert grid.scale == pytest.approx(160 / 127, rel=1e-4)
    found = cells(grid)
    assert found[0, 0] == pytest.approx((100, 0), abs=grid.scale)
    assert found[14, 19] == pytest.approx((0, -160), abs=grid.scale)


def test_each_axis_is_scaled_to_the_frame_by_itself():
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (16, 160)).astype(np.uint8)
    flow = np.full((16, 160, 2), 2, np.float32)
    found = measure(flow, picture, width=1600, height=48, grid=True)
    assert (found.camera.dx, found.camera.dy) == (20, 6)
    assert (found.grid.columns, found.grid.rows) == (20, 2)


def test_things_that_go_both_ways_have_no_direction():
    flow = np.zeros((120, 160, 2), np.float32)
    flow[40:60, 40:80, 0], flow[40:60, 100:140, 0] = 8, -8
    picture = np.random.default_rng(0).integers(0, 255, (120, 160)).astype(np.uint8)
    found = measure(flow, picture, width=640, height=480, grid=False)
    assert found.direction_deg is None
    assert found.moving_fraction > 0.05


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_pictures_that_are_too_small_or_of_two_sizes_have_no_flow(method):
    def blank(height, width):
        return np.zeros((height, width), np.uint8)

    flow = Flow(method)
    for before, after, reason in (
        (None, blank(120, 160), "first_frame"),
        (blank(1, 1), blank(1, 1), "frame_too_small"),
        (blank(10, 160), blank(10, 160), "frame_too_small"),
        (blank(120, 160), blank(160, 120), "size_changed"),
    ):
        assert obstacle(before, after) == reason
        if before is not None:
            with pytest.raises(ValueError, match=reason):
                flow(before, after)
    for shape in ((16, 16), (16, 160), (160, 16), (120, 160)):
        assert obstacle(blank(*shape), blank(*shape)) is None
        assert not flow(blank(*shape), blank(*shape)).any()
