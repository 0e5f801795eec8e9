"""The best classes of a model's scores, and which models are read."""

import numpy as np
import pytest

from app.errors import ModelRejected
from app.inference.client import TensorSpec
from app.pipeline.boxes import letterbox
from app.pipeline.stages.classify import class_scores, classify_reader
from tests.support.heads import FLOAT, model

SMALL = TensorSpec("images", "FP32", (-1, 3, 224, 224))
NAMES = [f"thing {number}" for number in range(10)]
BOX = letterbox(640, 480, 224, 224)


def probabilities(seed, count=3):
    logits = np.random.default_rng(seed).normal(0, 2, (count, 10))
    shares = np.exp(logits)
    return logits.astype(np.float32), (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
def test_the_five_best_classes(dtype):
    _, scores = probabilities(0)
    scores = scores.astype({"FP32": np.float32, "FP16": np.float16}[dtype])
    reader = classify_reader(model(SMALL, (-1, 10), names=NAMES, dtype=dtype))
    for row, found in zip(scores, reader.read_all({"output0": scores}, [BOX] * 3, confidence=0.99), strict=True):
        best = sorted(range(10), key=lambda number: -row[number])[:5]
        assert found.class_id.tolist() == best
        assert found.confidence.tolist() == row[best].astype(np.float32).tolist()
        assert [(s.class_name, s.confidence) for s in class_scores(found, reader.class_names)] == [
            (NAMES[number], round(float(row[number]), 4)) for number in best
        ]
    assert reader.read_all({"output0": scores}, [None, BOX, None])[::2] == [None, None]
    assert reader.scan({"output0": scores}, 0.35) == (None, 0)


def test_logits_become_probabilities_only_where_the_model_says_so():
    logits, scores = probabilities(1)
    reader = classify_reader(model(SMALL, (-1, 10), names=NAMES, logits="true"))
    found = reader.read({"output0": logits}, 0)
    best = np.argsort(-scores[0])[:5]
    assert found.class_id.tolist() == best.tolist()
    assert found.confidence == pytest.approx(scores[0][best], rel=1e-5)
    reader.check({"output0": logits})
    huge = reader.read({"output0": np.array([[1e30, -1e30, 0] + [0] * 7], np.float32)}, 0)
    assert huge.confidence.tolist()[0] == 1.0
    unsaid = classify_reader(model(SMALL, (-1, 10), names=NAMES))
    unsaid.check({"output0": scores})
    with pytest.raises(ModelRejected, match="no probabilities: set its parameter logits to true"):
        unsaid.check({"output0": logits})
    with pytest.raises(ModelRejected, match="no probabilities"):
        unsaid.check({"output0": np.full((1, 10), np.nan, np.float32)})
    classify_reader(model(SMALL, (-1, 10), names=NAMES, logits="false")).check({"output0": logits})


def test_fewer_than_five_classes_and_numbers_that_are_none():
    reader = classify_reader(model(SMALL, (-1, 3)))
    assert reader.class_names == ("class_0", "class_1", "class_2")
    found = reader.read({"output0": np.array([[0.2, np.nan, 0.8]], np.float32)}, 0)
    assert (found.class_id.tolist(), found.confidence.tolist()) == ([2, 0], pytest.approx([0.8, 0.2]))
    nothing = reader.read({"output0": np.full((1, 3), np.nan, np.float32)}, 0)
    assert class_scores(nothing, reader.class_names) == []


def test_the_number_of_classes_may_be_open():
    reader = classify_reader(model(SMALL, (-1, -1)))
    found = reader.read({"output0": np.array([[0.1, 0.9]], np.float32)}, 0)
    assert [score.class_name for score in class_scores(found, reader.class_names)] == ["class_1", "class_0"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (model(SMALL, (-1, 10), names=NAMES[:3]), "10 classes, but class_names has 3"),
        (model(SMALL, (-1, 10), logits="maybe"), "logits='maybe'; want true or false"),
        (model(SMALL, (-1, 10), task="segment"), "'segment'.*TRITON_SEGMENT_MODEL, not in TRITON_CLASSIFY_MODEL"),
        (model(FLOAT, (1, 84, 8400)), "known: one output.*TRITON_DETECT_MODEL"),
        (model(SMALL, (-1, 10), (-1, 10)), "known: one output"),
        (model(SMALL, (-1, 10), dtype="INT64"), "known: one output"),
        (model(SMALL, (-1, 10), class_names="no"), "class_names='no'; want a JSON array"),
    ],
)
def test_models_that_are_refused(spec, why):
    with pytest.raises(ModelRejected, match=why):
        classify_reader(spec)
