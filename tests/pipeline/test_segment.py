"""Instances with their masks, against the published steps of Ultralytics written out over whole arrays."""

import cv2
import numpy as np
import pytest
import supervision

from app.errors import ModelRejected
from app.pipeline.boxes import letterbox
from app.pipeline.stages import segment
from app.pipeline.stages.segment import (
    INSTANCE_POINTS,
    outline,
    run_lengths,
    segment_reader,
    segments,
    with_run_lengths,
)
from tests.support.heads import FLOAT, PREPARED, model

NAMES = ["person", "dog", "cup"]
M = 32
ASK = {"confidence": 0.35, "iou": 0.45, "classes": None, "max_detections": 300}
FRAMES = [(1280, 720), (480, 640), (97, 61), (1920, 400)]
PROTOS = (-1, M, 160, 160)


def scene(seed, count=16, shape=(640, 640)):
    """Rows x1, y1, x2, y2, score, class, coefficients; and prototypes with smooth shapes and a little noise."""
    random = np.random.default_rng(seed)
    height, width = shape
    centres = random.uniform(0, (width, height), (count, 2))
    sizes = random.uniform((3, 3), (width * 0.6, height * 0.6), (count, 2))
    rows = np.concatenate(
        (
            centres - sizes / 2,
            centres + sizes / 2,
            random.uniform(0.2, 0.95, (count, 1)),
            random.integers(0, 3, (count, 1)),
            random.normal(0, 1, (count, M)),
        ),
        axis=1,
    ).astype(np.float32)
    small = random.normal(0, 1, (M, height // 32, width // 32))
    protos = np.stack([cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_CUBIC) for image in small])
    return rows, (protos + random.normal(0, 0.02, protos.shape)).astype(np.float32)


def bilinear(images, height, width):
    """`F.interpolate(images, (height, width), mode="bilinear")`: `[n, h, w]` -> `[n, height, width]`."""

    def sides(before, after):
        at = np.maximum((np.arange(after) + 0.5) * (before / after) - 0.5, 0)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, before - 1), at - low

    top, bottom, down = sides(images.shape[1], height)
    left, right, across = sides(images.shape[2], width)
    lines = images[:, top] * (1 - down)[:, None] + images[:, bottom] * down[:, None]
    return lines[:, :, left] * (1 - across) + lines[:, :, right] * across


def reference_masks(rows, protos, height, width):
    """`process_mask(protos, coefficients, boxes, shape, upsample=True)` of ultralytics/utils/ops.py, 8.4.190."""
    logits = np.tensordot(rows[:, 6:].astype(np.float64), protos.astype(np.float64), 1)
    masks = bilinear(logits, height, width) > 0
    column, row = np.arange(width), np.arange(height)[:, None]
    for mask, (x1, y1, x2, y2) in zip(masks, rows[:, :4], strict=True):
        mask &= (column >= x1) & (column < x2) & (row >= y1) & (row < y2)
    return masks


def on_frame(masks, box):
    """`scale_masks(masks, frame)` of the same file, and a pixel counts if its value is above a half."""
    visible = masks[:, box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]
    return bilinear(visible.astype(np.float64), box.image_height, box.image_width) > 0.5


def overlap(one, other):
    return np.count_nonzero(one & other) / np.count_nonzero(one | other) if (one | other).any() else 1.0


def raw_outputs(rows, protos, anchors=8400):
    head = np.zeros((7 + M, anchors), np.float32)
    for at, row in zip(np.linspace(0, anchors - 1, len(rows)).astype(int), rows, strict=True):
        head[:4, at] = (*(row[:2] + row[2:4]) / 2, *(row[2:4] - row[:2]))
        head[4 + int(row[5]), at] = row[4]
        head[7:, at] = row[6:]
    return {"output0": head[None], "output1": protos[None]}


def rows_outputs(rows, protos):
    return {"output0": rows[None], "output1": protos[None]}


def raw_reader(**parameters):
    return segment_reader(model(FLOAT, (1, 7 + M, 8400), PROTOS, names=NAMES, **parameters))


def rows_reader():
    return segment_reader(model(FLOAT, (1, 300, 6 + M), PROTOS, names=NAMES, layout="end_to_end"))


def pixels_of(mask, height=640, width=640):
    whole = np.zeros((height, width), bool)
    whole[mask.y : mask.y + mask.height, mask.x : mask.x + mask.width] = mask.pixels
    return whole


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_masks_of_an_end_to_end_head_are_the_references(frame):
    rows, protos = scene(1)
    box = letterbox(*frame, 640, 640)
    found = rows_reader().read(rows_outputs(rows, protos), 0, box, **ASK)
    scoring = rows[rows[:, 4] > 0.35]
    masks = reference_masks(scoring, protos, 640, 640)
    wanted = masks.any(axis=(1, 2))
    assert found.confidence.tolist() == scoring[wanted, 4].tolist()
    assert found.class_id.tolist() == scoring[wanted, 5].tolist()
    for mask, right in zip(found.masks, masks[wanted], strict=True):
        assert overlap(pixels_of(mask), right) > 0.999
    wire = segments(with_run_lengths(found), None, tuple(NAMES))
    for instance, right in zip(wire, on_frame(masks[wanted], box), strict=True):
        assert tuple(instance.rle.size) == frame[::-1]
        assert overlap(supervision.rle_to_mask(instance.rle.counts, frame), right) > 0.995


def test_a_raw_head_is_suppressed_first():
    rows, protos = scene(2)
    copies = rows.copy()
    copies[:, :4] += 1
    copies[:, 4] *= 0.9
    box = letterbox(640, 640, 640, 640)
    found = raw_reader().read(raw_outputs(np.concatenate((copies, rows)), protos), 0, box, **{**ASK, "iou": 0.9})
    alone = rows_reader().read(rows_outputs(rows[(-rows[:, 4]).argsort()], protos), 0, box, **ASK)
    assert len(alone.masks) > 5
    both = {round(float(score), 6): pixels_of(mask) for score, mask in zip(found.confidence, found.masks, strict=True)}
    for score, mask, corners in zip(alone.confidence, alone.masks, alone.xyxy, strict=True):
        if (corners[2:] - corners[:2]).min() < 25:
            continue  # so small that its copy overlaps it by less
        assert overlap(both[round(float(score), 6)], pixels_of(mask)) > 0.999
        assert round(float(score) * 0.9, 6) not in both


def test_half_floats_and_a_canvas_that_is_no_square():
    rows, protos = scene(3, shape=(384, 640))
    picture = type(FLOAT)("images", "FP16", (-1, 3, 384, 640))
    spec = model(picture, (1, 300, 6 + M), (-1, M, 96, 160), names=NAMES, dtype="FP16", layout="end_to_end")
    half = {name: value.astype(np.float16) for name, value in rows_outputs(rows, protos).items()}
    found = segment_reader(spec).read(half, 0, letterbox(1280, 720, 640, 384), **ASK)
    rounded = half["output0"][0].astype(np.float32)
    scoring = rounded[rounded[:, 4] > np.float16(0.35)]
    masks = reference_masks(scoring, half["output1"][0].astype(np.float32), 384, 640)
    masks = masks[masks.any(axis=(1, 2))]
    assert len(masks) > 5
    for mask, right in zip(found.masks, masks, strict=True):
        assert overlap(pixels_of(mask, 384, 640), right) > 0.999


def test_prototypes_of_another_size_than_a_quarter():
    rows, protos = scene(4, shape=(608, 608))
    spec = model(FLOAT, (1, 300, 6 + M), (-1, M, 152, 152), names=NAMES, layout="end_to_end")
    found = segment_reader(spec).read(rows_outputs(rows, protos), 0, letterbox(640, 640, 640, 640), **ASK)
    masks = reference_masks(rows[rows[:, 4] > 0.35], protos, 640, 640)
    for mask, right in zip(found.masks, masks[masks.any(axis=(1, 2))], strict=True):
        assert overlap(pixels_of(mask), right) > 0.999


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_outlines_are_the_points_of_the_reference_and_cover_the_mask(frame):
    """`masks2segments` and `scale_coords`: the reference's single line runs through all parts, here each has a ring."""
    rows, protos = scene(5)
    box = letterbox(*frame, 640, 640)
    found = rows_reader().read(rows_outputs(rows, protos), 0, box, **ASK)
    masks = reference_masks(rows[rows[:, 4] > 0.35], protos, 640, 640)
    masks = masks[masks.any(axis=(1, 2))]
    wire = segments(found, None, tuple(NAMES))
    assert len(wire) == len(masks) > 5
    parts = 0
    for instance, right in zip(wire, masks, strict=True):
        lines, _ = cv2.findContours(right.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        points = np.concatenate(lines).reshape(-1, 2)
        scaled = (points - (box.pad_x, box.pad_y)) / (box.width / frame[0], box.height / frame[1])
        theirs = np.clip(scaled, 0, frame)
        ours = np.array([point for ring in instance.polygons for point in ring if len(ring) > 4]).reshape(-1, 2)
        nearest = np.abs(ours[:, None] - theirs).max(axis=2).min(axis=1, initial=np.inf)
        # But for single pixels where float32 rounds to the other side of 0.
        assert np.count_nonzero(nearest > 0.051) <= 0.01 * len(ours)
        parts += len(instance.polygons)
        rings, simplified = outline(right, 0, 0)
        assert not simplified
        filled, drawn = np.zeros((640, 640), np.uint8), np.zeros((640, 640), np.uint8)
        cv2.drawContours(filled, lines, -1, 1, -1)
        cv2.fillPoly(drawn, [np.rint(ring).astype(np.int32) for ring in rings], 1)
        lines_only = any(ring.dtype != np.int32 for ring in rings)  # half pixels around a line, rounded here
        assert overlap(filled > 0, drawn > 0) > (0.95 if lines_only else 0.99)
    assert parts > len(wire)


def test_an_instance_without_a_pixel_is_left_out_and_counted():
    rows, protos = scene(6, count=3)
    rows[:, 4] = 0.9, 0.8, 0.7
    rows[:, :4] = (100, 100, 300, 300), (200.2, 200.2, 200.8, 300), (-50, -50, -1, -1)
    protos[:] = 1
    rows[:, 6:] = 1
    before = segment.metrics.MASKS.labels("empty")._value.get()
    found = rows_reader().read(rows_outputs(rows, protos), 0, letterbox(640, 640, 640, 640), **ASK)
    assert found.confidence.tolist() == pytest.approx([0.9])
    assert found.polygons == [[[[100.0, 100.0], [100.0, 299.0], [299.0, 299.0], [299.0, 100.0]]]]
    assert segment.metrics.MASKS.labels("empty")._value.get() == before + 2
    assert segments(found, np.array([7]), tuple(NAMES))[0].track_id == 7
    assert segments(found, np.array([-1]), tuple(NAMES))[0].track_id is None


def test_numbers_that_are_none_give_no_mask():
    rows, protos = scene(7, count=2)
    rows[:, 4] = 0.9, 0.8
    rows[0, 10] = np.nan
    rows[1, 2] = np.inf
    found = rows_reader().read(rows_outputs(rows, protos), 0, letterbox(640, 640, 640, 640), **ASK)
    assert found.xyxy.shape == (0, 4)
    assert found.polygons == found.masks == segments(found, None, ()) == []


def test_what_is_asked_for():
    rows, protos = scene(8)
    rows = rows[(-rows[:, 4]).argsort()]
    box = letterbox(640, 640, 640, 640)
    for outputs, reader in ((rows_outputs(rows, protos), rows_reader()), (raw_outputs(rows, protos), raw_reader())):
        found = reader.read(outputs, 0, box, **{**ASK, "classes": frozenset({1}), "iou": 1.0})
        assert set(found.class_id.tolist()) == {1}
        assert len(reader.read(outputs, 0, box, **{**ASK, "max_detections": 2}).masks) == 2
        assert reader.read(outputs, 0, box, **{**ASK, "confidence": 0.99}).masks == []
        assert [f is None for f in reader.read_all(outputs, [None], **ASK)] == [True]
        (alone,) = reader.read_all(outputs, [box], **ASK)
        assert alone.polygons == reader.read(outputs, 0, box, **ASK).polygons


def test_where_the_outputs_are_read():
    rows, protos = scene(9)
    assert raw_reader().scan(raw_outputs(rows, protos), 0.35)[1] > 10**9
    assert rows_reader().scan(rows_outputs(rows, protos), 0.35)[1] > 10**9
    assert rows_reader().scan(rows_outputs(rows, protos), 0.99)[1] == 0


# --- outlines ---


def test_specks_are_left_out_but_no_part_that_counts():
    pixels = np.zeros((200, 200), bool)
    pixels[10:110, 10:110] = True
    pixels[150:153, 150:153] = True
    rings, _ = outline(pixels, 0, 0)
    assert len(rings) == 1
    pixels[:] = False
    pixels[10:20, 10:20] = True
    pixels[150:153, 150:153] = True  # a twelfth of the whole
    rings, _ = outline(pixels, 5, 7)
    assert [ring.min(axis=0).tolist() for ring in rings] == [[15, 17], [155, 157]]
    pixels[15, 15] = False  # a hole has no ring
    assert len(outline(pixels, 0, 0)[0]) == 2


@pytest.mark.parametrize(
    ("at", "ring"),
    [
        ((slice(5, 6), slice(8, 9)), [(7.5, 4.5), (8.5, 4.5), (8.5, 5.5), (7.5, 5.5)]),
        ((slice(5, 6), slice(8, 12)), [(7.5, 4.5), (11.5, 4.5), (11.5, 5.5), (7.5, 5.5)]),
        ((slice(5, 9), slice(8, 9)), [(8.5, 4.5), (8.5, 8.5), (7.5, 8.5), (7.5, 4.5)]),
    ],
)
def test_a_line_of_pixels_has_a_ring_around_it(at, ring):
    pixels = np.zeros((30, 30), bool)
    pixels[at] = True
    (found,), _ = outline(pixels, 0, 0)
    assert found.tolist() == [list(point) for point in ring]


def test_an_outline_of_too_many_points_is_simplified():
    angle = np.linspace(0, 2 * np.pi, 4000)
    radius = 250 + 30 * np.sin(60 * angle)
    pixels = np.zeros((640, 640), np.uint8)
    star = np.stack((320 + radius * np.cos(angle), 320 + radius * np.sin(angle)), axis=1)
    cv2.fillPoly(pixels, [star.astype(np.int32)], 1)
    whole, simplified = outline(pixels.view(bool), 0, 0, 10_000)
    assert (sum(map(len, whole)) > INSTANCE_POINTS, simplified) == (True, False)
    for most in (INSTANCE_POINTS, 200, 20):
        rings, simplified = outline(pixels.view(bool), 0, 0, most)
        assert simplified
        assert 3 <= sum(map(len, rings)) <= most
    noise = np.random.default_rng(0).random((300, 300)) > 0.6
    rings, _ = outline(noise, 0, 0, 50)
    assert sum(map(len, rings)) <= 50


def test_a_frame_of_many_instances_shares_the_points():
    random = np.random.default_rng(10)
    rows, protos = scene(10, count=200)
    rows[:, 4] = 0.9
    protos[:] = random.normal(0, 1, protos.shape)
    found = rows_reader().read(rows_outputs(rows, protos), 0, letterbox(640, 640, 640, 640), **ASK)
    points = [sum(map(len, rings)) for rings in found.polygons]
    assert len(points) > 150
    assert max(points) <= segment.FRAME_POINTS // 200
    assert all(len(ring) > 2 for rings in found.polygons for ring in rings)


# --- run lengths ---


def plain_run_lengths(mask):
    """`rleEncode` and `rleToString` of pycocotools, pixel by pixel and number by number."""
    counts, current = [0], False
    for value in mask.T.reshape(-1):
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    text = ""
    for number, count in enumerate(counts):
        left = count - counts[number - 2] if number > 2 else count
        while True:
            digit, left = left & 31, left >> 5
            more = left != -1 if digit & 16 else left != 0
            text += chr(48 + digit + 32 * more)
            if not more:
                break
    return text


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths_are_those_of_coco(density):
    random = np.random.default_rng(0)
    for height, width in ((7, 5), (1, 40), (40, 1), (61, 97), (480, 640)):
        mask = random.random((height, width)) < density
        text = run_lengths(mask, 0, 0, width, height)
        assert text == plain_run_lengths(mask)
        assert (supervision.rle_to_mask(text, (width, height)) == mask).all()


def test_run_lengths_of_a_part_are_those_of_the_whole():
    random = np.random.default_rng(1)
    for x, y, wide, high in ((0, 0, 30, 40), (10, 0, 20, 40), (3, 5, 11, 13), (29, 39, 1, 1)):
        whole = np.zeros((40, 30), bool)
        part = random.random((high, wide)) < 0.7
        whole[y : y + high, x : x + wide] = part
        assert run_lengths(part, x, y, 30, 40) == plain_run_lengths(whole)
    assert run_lengths(np.zeros((0, 0), bool), 3, 3, 30, 40) == plain_run_lengths(np.zeros((40, 30), bool))


def test_run_lengths_are_bounded(monkeypatch):
    rows, protos = scene(11)
    found = rows_reader().read(rows_outputs(rows, protos), 0, letterbox(1280, 720, 640, 640), **ASK)
    monkeypatch.setattr(segment, "FRAME_RLE", 500)
    before = segment.metrics.MASKS.labels("without_rle")._value.get()
    lengths = with_run_lengths(found).lengths
    given = [length for length in lengths if length is not None]
    assert lengths[: len(given)] == given
    assert 0 < len(given) < len(lengths)
    assert sum(len(length.counts) for length in given[:-1]) <= 500
    assert segment.metrics.MASKS.labels("without_rle")._value.get() == before + len(lengths) - len(given)


# --- which models are read ---


@pytest.mark.parametrize(
    ("spec", "layout", "classes", "declared"),
    [
        (model(FLOAT, (1, 116, 8400), PROTOS), "raw", 80, False),
        (model(FLOAT, (-1, 116, -1), PROTOS), "raw", 80, False),
        (model(FLOAT, (1, 39, 8400), PROTOS, names=NAMES, task="segment", layout="raw"), "raw", 3, True),
        (model(FLOAT, (1, 300, 38), PROTOS), "end_to_end", 0, False),
        (model(FLOAT, (1, 300, 38), PROTOS, layout="end_to_end"), "end_to_end", 0, True),
        (model(PREPARED, (-1, 300, 38), PROTOS, names=NAMES), "prepared", 3, True),
        (model(FLOAT, (1, PROTOS[1], 160, 160), (1, 116, 8400)), "raw", 80, False),  # the other way round
        (model(FLOAT, (1, 4 + 2 + 16, 8400), (1, 16, 160, 160)), "raw", 2, False),
    ],
)
def test_models_that_are_read(spec, layout, classes, declared):
    reader = segment_reader(spec)
    assert (reader.layout, len(reader.class_names), reader.declared) == (layout, classes, declared)
    shapes = {t.name: len(t.shape) for t in spec.outputs}
    assert (shapes[reader.output_name], shapes[reader.protos_name]) == (3, 4)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (model(FLOAT, (1, 84, 8400)), "no prototypes of masks.*TRITON_DETECT_MODEL"),
        (model(FLOAT, (1, 1000)), "TRITON_CLASSIFY_MODEL"),
        (model(FLOAT, PROTOS), "no head with boxes"),
        (model(FLOAT, (1, 116, 8400), PROTOS, (1, 300, 38)), "output0 and output2 could each be it"),
        (model(FLOAT, (1, 116, 8400), PROTOS, names=NAMES), "80 classes beside 32 coefficients.*class_names has 3"),
        (model(FLOAT, (1, 116, 8400), PROTOS, task="detect"), "'detect'.*TRITON_DETECT_MODEL, not in TRITON_SEGMENT"),
        (model(FLOAT, (1, 116, 8400), PROTOS, task="depth"), "task='depth'; want detect, pose, segment, obb, classify"),
        (model(FLOAT, (1, 25200, 117), PROTOS), r"known: \[N, 4 \+ classes \+ M, A\]"),
    ],
)
def test_models_that_are_refused(spec, why):
    with pytest.raises(ModelRejected, match=why):
        segment_reader(spec)


def test_a_first_answer_of_another_kind_is_refused():
    rows, protos = scene(12)
    reader = segment_reader(model(FLOAT, (1, 300, 6 + M), PROTOS, names=NAMES))
    reader.check(rows_outputs(rows, protos))
    rows[:, :4] /= 640
    with pytest.raises(ModelRejected, match="not pixels"):
        reader.check(rows_outputs(rows, protos))
    rows_reader().check(rows_outputs(rows, protos))  # it says what it is
