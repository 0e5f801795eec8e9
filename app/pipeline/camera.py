"""The camera's motion between two pictures: a shift, a turn and a zoom, fitted to vectors of which many are others'.

Points and vectors are complex numbers, x + iy in frame pixels from the middle of the frame, y down: a similarity is
then `a * p + t`, and a turn is positive clockwise as seen.
"""

from __future__ import annotations

import cmath
import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.complex64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

NEAR = (0.75, 2.5)
"""How far a vector may be off and still follow a motion, tolerances: at first, and where few are that near."""
FEW = 0.5
"""Share of the vectors under which the wider tolerance is tried."""
LEAST = 6
"""Vectors that a fit needs: two would do if they were exact."""
MOST = 0.67
"""Share of the vectors that must hardly leave their place for a fit to start from none: no other motion has so many."""
OTHER = 0.2
"""Share of the vectors that do not follow the first motion, from which a second one is looked for among them."""
SAFE = 0.8
"""Share of the votes up to which a second motion is looked for, where all that does not follow the first votes against
it: as one, it would hardly get more."""
HARDLY = 0.1
"""Tolerances that a motion must reach anywhere in the picture: a seventh of a pixel of 640x480."""
SETTLED = 0.005
"""Share of where the weights end, under which another step of a fit is worth nothing: 0.02 pixels of 640x480."""
STANDS = 1.6
"""How many times as many votes a moving camera needs as one that stands: what moves past that one may fill more."""
BLOCK = 4
"""Side of a block, cells. Blocks vote, not cells: a thing with much texture must not outvote the room around it."""


class Camera(NamedTuple):
    """Where the picture went: a point `p` of it goes to `a * p + t`."""

    a: complex = 1 + 0j
    t: complex = 0j

    @property
    def rotation_deg(self) -> float:
        """Clockwise as seen."""
        return math.degrees(cmath.phase(self.a))

    @property
    def zoom(self) -> float:
        return abs(self.a)

    def past(self, other: Camera) -> Camera:
        """What takes the place where `other` puts a point to the place where this one does."""
        return Camera(self.a / other.a, self.t - self.a / other.a * other.t)

    def reach(self, width: int, height: int) -> float:
        """How far it moves any point of a frame, at most; pixels."""
        return abs(self.a - 1) * math.hypot(width, height) / 2 + abs(self.t)

    def matrix(self, width: int, height: int, columns: int, rows: int) -> NDArray[np.float64]:
        """The same in the pixels of a picture of the frame that has so many columns and rows: affine, `[2, 3]`."""
        x, y = width / columns, height / rows
        # The middle of the picture's first pixel lies half a pixel off its corner.
        first = complex(x / 2 - width / 2, y / 2 - height / 2)
        there = self.a * first + self.t - first
        a = self.a
        return np.array(((a.real, -a.imag * y / x, there.real / x), (a.imag * x / y, a.real, there.imag / y)))


STILL = Camera()


@lru_cache(maxsize=256)
def middles(width: int, height: int, columns: int, rows: int) -> Points:
    """Of the cells of a frame, row by row: `[rows * columns]`."""
    x = (np.arange(columns) + 0.5) * (width / columns) - width / 2
    y = (np.arange(rows) + 0.5) * (height / rows) - height / 2
    points = (x[None, :] + 1j * y[:, None]).astype(np.complex64).ravel()
    points.flags.writeable = False
    return points


def fit(
    points: Points,
    vectors: Points,
    use: Mask,
    weight: Floats,
    columns: int,
    rows: int,
    tolerance: float,
) -> Camera:
    """The motion of the camera, of vectors that start at the middles of `columns` x `rows` cells.

    The two motions that most vectors follow stand for election, and that the camera stands; the one that holds in
    most blocks of the picture is the camera's. So it is found as long as what moves by itself fills less of what has
    texture than the rest; before a camera that stands, up to about 60%.

    Args:
        points: complex64 `[n]`, of `middles`.
        vectors: complex64 `[n]`, how far what is there went.
        use: bool `[n]`, which of them can be trusted.
        weight: float32 `[n]`, how much; above 0.
        columns: of the grid.
        rows: likewise.
        tolerance: what a vector errs by, pixels.
    """
    count = int(np.count_nonzero(use))
    if count < LEAST:
        return STILL
    used = _Vectors(points, vectors, use, weight)
    best, off, near = _motion(used, count, tolerance)
    if best is None:
        return STILL
    wide = tolerance * NEAR[1]
    follow = use & (off < wide**2)
    others = use & (off > near**2)
    if abs(best.a - 1) * used.far + abs(best.t) < HARDLY * tolerance and stands(
        votes(use > others, others, columns, rows)
    ):
        return STILL
    more = int(np.count_nonzero(others))
    if more >= max(LEAST, OTHER * count) and votes(follow, use > follow, columns, rows) <= SAFE:
        second, away, _ = _motion(used.only(others), more, tolerance)
        if second is not None and votes(follow, use & (away < wide**2), columns, rows) < 0.5:
            best, off = second, away
    # A slow motion is near to none: what does not tell the two apart must not vote for the camera that stands.
    reach = min(wide, abs(best.t) / 3 + tolerance / 2) ** 2
    standing, going = use & (used.length < reach), use & (off < reach)
    if (standing > going).any() and stands(votes(standing, going, columns, rows)):
        return STILL
    return best


def votes(one: Mask, other: Mask, columns: int, rows: int) -> float:
    """The share of the blocks, of those in which one holds more cells than the other, that are the first's: 0 to 1.

    Args:
        one: bool `[n]`, the cells in which the one motion holds, and `other` the other.
        columns: of the grid.
        rows: likewise.
    """
    block, count = _blocks(columns, rows)
    more = np.bincount(block, one.view(np.int8) - other.view(np.int8), count)
    won, lost = np.count_nonzero(more > 0), np.count_nonzero(more < 0)
    return won / (won + lost) if won + lost else 0.5


def stands(share: float) -> bool:
    """Whether the camera is taken to stand, where that has so large a share of the votes."""
    return share * STANDS > 1 - share


class _Vectors:
    """Vectors `d` that start at `p`, and what of them every step of a fit needs.

    How far a vector ends from where a motion ends, squared, and the sums of least squares are both linear in nine
    products of `p` and `d`: one product of matrices each, instead of twenty calls of numpy's that each take longer to
    begin than to do. For the same reason those that are not used stay, without any weight.
    """

    __slots__ = ("_products", "ends", "far", "length", "starts", "trust", "use")

    def __init__(self, p: Points, d: Points, use: Mask, weight: Floats) -> None:
        self.use, self.starts, self.ends = use, p, p + d
        self.far = float(abs(p[0]))
        """Of the outermost from the middle."""
        self.trust = np.multiply(weight, use, dtype=np.float64)
        products = self._products = np.empty((9, p.size))
        start, way = products[1:3], products[3:5]
        products[0] = 1
        start[:], way[:] = _pairs(p).T, _pairs(d).T
        both = start * way[::-1]
        np.subtract(both[0], both[1], out=products[5])
        np.multiply(start, way, out=both)
        np.add(both[0], both[1], out=products[6])
        squares = products[1:5] ** 2
        np.add(squares[::2], squares[1::2], out=products[7:])
        self.length = products[8]
        """Float64 `[n]`: of each vector, squared."""

    def only(self, use: Mask) -> _Vectors:
        """Some of them."""
        some = _Vectors.__new__(_Vectors)
        some.use, some.starts, some.ends, some.length, some.far = use, self.starts, self.ends, self.length, self.far
        some.trust, some._products = self.trust * use, self._products
        return some

    def off(self, camera: Camera, by: float = 1.0, plus: float = 0.0) -> NDArray[np.float64]:
        """Float64 `[n]`: how far a vector ends from where the camera's motion ends, squared; times `by`, and `plus`."""
        a, t = camera.a - 1, camera.t
        turned = t.conjugate() * a
        twice = 2 * by
        far = (
            plus + by * (t.real**2 + t.imag**2),
            twice * turned.real,
            -twice * turned.imag,
            -twice * t.real,
            -twice * t.imag,
            -twice * a.imag,
            -twice * a.real,
            by * (a.real**2 + a.imag**2),
            by,
        )
        off: NDArray[np.float64] = np.array(far) @ self._products
        return off

    def fitted(self, weight: NDArray[np.float64]) -> Camera:
        """The motion of least squares, each vector by its weight."""
        whole, px, py, dx, dy, cross, dot, square, _ = (self._products @ weight).tolist()
        middle, mean = complex(px, py) / whole, complex(dx, dy) / whole
        spread = square - whole * abs(middle) ** 2
        turn = (complex(dot, cross) - whole * middle.conjugate() * mean) / spread if spread > 0 else 0j
        return Camera(1 + turn, mean - turn * middle)


def _motion(vectors: _Vectors, whole: int, tolerance: float) -> tuple[Camera | None, NDArray[np.float64], float]:
    """The motion that most of so many vectors follow, how far off it each ends, squared, and the reach it won by."""
    use = vectors.use
    off, camera, count = vectors.length, STILL, 0
    for widening in NEAR:
        reach = tolerance * widening
        start = STILL
        if np.count_nonzero(use & (vectors.length < reach**2)) < MOST * whole:
            # OpenCV's generator begins with the same number in every call: the same vectors give the same motion.
            matrix, _ = cv2.estimateAffinePartial2D(
                _pairs(vectors.starts[use]),
                _pairs(vectors.ends[use]),
                method=cv2.RANSAC,
                ransacReprojThreshold=reach,
                maxIters=300,
                refineIters=0,
            )
            if matrix is None:
                return None, off, 0.0
            (a, _, x), (b, _, y) = matrix.tolist()
            start = Camera(complex(a, b), complex(x, y))
        camera = _refined(start, vectors, 2 * reach)
        off = vectors.off(camera)
        count = int(np.count_nonzero(use & (off < reach**2)))
        if count >= FEW * whole:
            break
    return (camera if count >= LEAST else None), off, reach


def _refined(camera: Camera, vectors: _Vectors, reach: float) -> Camera:
    """Least squares, each vector by its weight and by how near it was: Tukey's weights, which end at `reach`.

    Three times, at first from twice as far: the few vectors that the motion was made of lie about as they please. Twice
    where the second time hardly changes anything.
    """
    for wider in (2, 1, 1):
        weight = vectors.off(camera, -1 / (wider * reach) ** 2, 1)
        np.maximum(weight, 0, out=weight)
        weight *= weight
        weight *= vectors.trust
        if np.count_nonzero(weight) < LEAST:
            break
        rough, camera = camera, vectors.fitted(weight)
        if wider == 1 and abs(camera.a - rough.a) * vectors.far + abs(camera.t - rough.t) < SETTLED * reach:
            break
    return camera


def _pairs(points: Points) -> Floats:
    return points.view(np.float32).reshape(-1, 2)


@lru_cache(maxsize=256)
def _blocks(columns: int, rows: int) -> tuple[NDArray[np.int64], int]:
    """The block of each cell, and how many there are."""
    across = -(-columns // BLOCK)
    block = np.arange(rows)[:, None] // BLOCK * across + np.arange(columns)[None, :] // BLOCK
    return block.ravel(), int(block.max()) + 1
