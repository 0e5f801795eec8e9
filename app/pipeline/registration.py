"""Registration of two small grey frames: how one lies on the other, and what the camera did in between.

DOC
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

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


class Similarity(NamedTuple):
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

    def past(self, other: Similarity) -> Similarity:
        """What takes the place where `other` puts a point to the place where this one does."""
        return Similarity(self.a / other.a, self.t - self.a / other.a * other.t)

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


STILL = Similarity()


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
) -> Similarity:
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

    def off(self, camera: Similarity, by: float = 1.0, plus: float = 0.0) -> NDArray[np.float64]:
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

    def fitted(self, weight: NDArray[np.float64]) -> Similarity:
        """The motion of least squares, each vector by its weight."""
        whole, px, py, dx, dy, cross, dot, square, _ = (self._products @ weight).tolist()
        middle, mean = complex(px, py) / whole, complex(dx, dy) / whole
        spread = square - whole * abs(middle) ** 2
        turn = (complex(dot, cross) - whole * middle.conjugate() * mean) / spread if spread > 0 else 0j
        return Similarity(1 + turn, mean - turn * middle)


def _motion(vectors: _Vectors, whole: int, tolerance: float) -> tuple[Similarity | None, NDArray[np.float64], float]:
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
            start = Similarity(complex(a, b), complex(x, y))
        camera = _refined(start, vectors, 2 * reach)
        off = vectors.off(camera)
        count = int(np.count_nonzero(use & (off < reach**2)))
        if count >= FEW * whole:
            break
    return (camera if count >= LEAST else None), off, reach


def _refined(camera: Similarity, vectors: _Vectors, reach: float) -> Similarity:
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


# --- two frames compared, cell by cell ---

Grey = NDArray[np.uint8]
DenseFlow = Callable[[Grey, Grey], Floats]
"""From two pictures to float32 `[h, w, 2]`: where the pixel of the first went, dx and dy in their pixels."""

CELL = 8
"""Side of a cell, grey pixels: 160x120 has 20x15."""
TEXTURE = 2.0
"""Grey levels: the standard deviation at half size from which a cell has texture. JPEG leaves less than 1 of a wall."""
PLENTY = 20.0
"""Grey levels: the standard deviation from which a cell shows that well. Flow errs more where there is less."""
MATCH = 0.6
"""Correlation from which a cell is the same at both ends of its vector. Of noise, flow makes up to 0.4."""
TOLERANCE = 0.002
"""What a vector errs by where the picture hardly moves, share of the frame's diagonal: 1.6 pixels of 640x480."""
HELD = 0.7
"""Correlation from which a cell lies where the camera's motion puts it."""
GOOD = 0.75
"""Share of the cells with texture that must lie there, or other motions are tried."""
AGAIN = 0.015
"""Share of the diagonal: a motion that reaches farther is taken out of the picture, and flow looks again."""
PEAK = 6.0
"""Standard deviations from which a peak of the phase correlation is a shift. The highest of noise is about 4."""
LEAST_SHIFT = 0.02
"""Share of the diagonal under which flow needs no help."""
UNLIKE = 0.03
"""What a motion may leave unlike, beside twice what the best one leaves, where it still holds."""
BETTER = 0.95
"""How much must be left unlike by a moving camera, of what a standing one leaves, where nothing else decides."""


class Layout(NamedTuple):
    """What follows from the sizes of a frame and of its grey picture alone."""

    rows: int
    columns: int
    """Of cells."""
    size: tuple[int, int]
    """Columns and rows of a picture at half size."""
    points: Points
    """complex64 `[n]`, the cells' middles, frame pixels; see `middles`."""
    raster: Floats
    """float32 `[h, w, 2]`: each pixel's own place at half size, x and y."""
    to_half: Floats
    """float32 `[2]`: pixels at half size a grey pixel, x and y."""
    to_frame: Floats
    """float32 `[rows, columns, 2]`: frame pixels a pixel at half size, x and y; of the grey picture, unless `whole`."""
    bounds: Floats
    """float32 `[2 * n]`: how far from the frame's middle a cell's may be while all of it is shown; x, y, x, y…"""
    halved: bool
    """Whether the half size is just that."""
    whole: bool
    """Whether a cell is a whole number of pixels at half size."""


class GreyFrame:
    """One grey picture, uint8 `[h, w]`, at half its size, and what its cells are like.

    Args:
        grey: the picture.
        before: the one it follows, of the same size, if there is one.
    """

    __slots__ = ("cells", "count", "grey", "half", "mean", "product", "textured", "variance", "weight")

    def __init__(self, grey: Grey, before: GreyFrame | None = None) -> None:
        self.grey = grey
        rows, columns = _cells(grey.shape)
        size = _half(grey.shape)
        moments = np.empty((2 if before is None else 3, size[1], size[0]), np.float32)
        self.half: Floats = moments[0]
        """float32 `[h, w]`."""
        self.half[:] = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR)
        np.multiply(self.half, self.half, out=moments[1])
        if before is not None:
            np.multiply(self.half, before.half, out=moments[2])
        cells = by_cell(moments, rows, columns)
        self.cells = cells[0]
        """float32 `[rows, columns]`: the mean of each."""
        variance = (cells[1] - self.cells * self.cells).ravel()
        self.textured: Mask = variance >= TEXTURE**2
        """bool `[n]`: the cells that can show where they go."""
        self.count = np.count_nonzero(self.textured)
        """How many those are."""
        self.weight: Floats = variance / (variance + PLENTY**2)
        """float32 `[n]`, 0 to 1: how well."""
        self.mean, square, *product = _around(cells)
        """float32 `[rows, columns]`, of each cell and its neighbours; their `variance` has a grey level of noise on
        top, so that what has no texture is like nothing."""
        self.product: Floats | None = product[0] if product else None
        """Likewise, of the products with the picture before."""
        self.variance: Floats = square - self.mean * self.mean
        np.maximum(self.variance, 0, out=self.variance)
        self.variance += 1


class FlowField:
    """Where flow says that the cells went.

    Args:
        pair: the pictures.
        flow: what to ask.
        seed: a motion that is taken out of the second picture before; flow then finds what differs from it.
    """

    def __init__(self, pair: FramePair, flow: DenseFlow, seed: Similarity) -> None:
        self._pair, self.seed = pair, seed
        layout = pair.layout
        previous, current = pair.before.grey, pair.after.grey
        if seed is not STILL:
            current = _drawn_back(current, seed, pair)
        dense = flow(previous, current)
        if layout.halved:
            # Flow is smooth: two pixels of each four are as good as all, and OpenCV takes three times as long to halve
            # two channels.
            pixels = dense.view(np.complex64)[..., 0]
            half: Any = (pixels[::2, ::2] + pixels[1::2, 1::2]).view(np.float32)
            half *= np.float32(0.25)
            half.shape = *half.shape[:1], -1, 2
        else:
            half = cv2.resize(dense, layout.size, interpolation=cv2.INTER_LINEAR)
            half *= layout.to_half
        self._half: Floats = half
        """float32 `[h, w, 2]`, at half size and in pixels of it."""
        cells: Any = cv2.resize(
            half if layout.whole else dense, (layout.columns, layout.rows), interpolation=cv2.INTER_AREA
        )
        cells *= layout.to_frame
        found = cells.view(np.complex64).ravel()
        self.vectors: Points = found
        """complex64 `[n]`, frame pixels."""
        there = layout.points + found
        if seed is not STILL:
            there = np.complex64(seed.a) * there + np.complex64(seed.t)
            self.vectors = there - layout.points
        self.found: Floats = np.abs(found)
        """float32 `[n]`: how far flow had to look for each, pixels."""
        self.inside = pair.before.textured & pair.shown(there)
        """bool `[n]`: the cells with texture that are still in the picture."""

    @cached_property
    def alike(self) -> Floats:
        """float32 `[n]`: how alike each cell is at both ends of its vectors, pixel by pixel; -1 to 1."""
        pair = self._pair
        at: Any = self._half + pair.layout.raster
        if self.seed is not STILL:
            at = cv2.transform(at, self.seed.matrix(pair.width, pair.height, *pair.layout.size).astype(np.float32))
        there: Any = cv2.remap(pair.after.half, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        return pair.likeness(there)

    @cached_property
    def matched(self) -> Mask:
        """bool `[n]`: the vectors to be trusted."""
        return self.inside & (self.alike >= MATCH)


class FramePair:
    """Two pictures of one size, the one `before` the other, of a frame of `width` x `height`; compared at half size."""

    def __init__(self, before: GreyFrame, after: GreyFrame, width: int, height: int) -> None:
        self.before, self.after, self.width, self.height = before, after, width, height
        self.diagonal = math.hypot(width, height)
        self.layout = _layout(width, height, before.grey.shape)

    @cached_property
    def stood(self) -> Floats:
        """`likeness` of the second picture as it is."""
        after = self.after
        assert after.product is not None
        return self._correlation(after.mean, after.variance, after.product)

    def likeness(self, picture: Floats) -> Floats:
        """float32 `[n]`: the correlation of each cell and its neighbours with the same place of the first picture."""
        planes = np.empty((3, *picture.shape), np.float32)
        planes[0] = picture
        np.multiply(picture, picture, out=planes[1])
        np.multiply(picture, self.before.half, out=planes[2])
        mean, variance, product = _around(by_cell(planes, self.layout.rows, self.layout.columns))
        variance = variance - mean * mean
        np.maximum(variance, 0, out=variance)
        variance += 1
        return self._correlation(mean, variance, product)

    def _correlation(self, mean: Floats, variance: Floats, product: Floats) -> Floats:
        alike = product - mean * self.before.mean
        spread = variance * self.before.variance
        alike /= np.sqrt(spread, out=spread)
        found: Floats = alike.ravel()
        return found

    def drawn_back(self, camera: Similarity) -> Floats:
        """The second picture at half size, with the camera's motion taken out."""
        picture: Floats = _drawn_back(self.after.half, camera, self)
        return picture

    def shown(self, points: Points) -> Mask:
        """bool `[n]`: of which cells, with their middles at these points, all lies in the frame."""
        inside = np.abs(points.view(np.float32)) < self.layout.bounds
        shown: Mask = inside[::2] & inside[1::2]
        return shown

    def seen(self, camera: Similarity) -> Mask:
        """bool `[n]`: the cells with texture that the camera still has in view."""
        if camera is STILL:
            return self.before.textured
        there = np.complex64(camera.a) * self.layout.points
        there += np.complex64(camera.t)
        return self.before.textured & self.shown(there)


class Registration(NamedTuple):
    """What is known of a pair of pictures."""

    camera: Similarity
    alike: Floats
    """float32 `[n]`: how alike the cells are once the camera's motion is taken out."""
    way: FlowField
    held: float
    """Share of the cells with texture that lie where the camera's motion puts them."""
    seen: Mask
    """bool `[n]`: the cells with texture that the camera still has in view."""


def same(pair: FramePair) -> bool:
    """Whether there is nothing to look for: no texture, or the same picture once more."""
    before, after = pair.before, pair.after
    return not before.count or (
        before.cells.tobytes() == after.cells.tobytes() and before.grey.tobytes() == after.grey.tobytes()
    )


def register(pair: FramePair, flow: DenseFlow) -> Registration:
    """What the camera did, and where each cell went.

    Flow finds what moves by a few pixels of the small picture. Where that explains too little, the shifts that phase
    correlation finds are tried; a motion that reaches far is taken out, and flow looks again at what is left.
    """
    tried = [_attempt(pair, flow, STILL)]
    best = tried[0]
    if best.held < GOOD:
        for shift in shifts(pair, pair.after.half, 2):
            tried.append(_attempt(pair, flow, shift))
            best = _better(pair, best, tried[-1])
            if best.held >= GOOD:
                break
    for _ in range(2):
        if best.camera.past(best.way.seed).reach(pair.width, pair.height) < AGAIN * pair.diagonal:
            break
        tried.append(_attempt(pair, flow, best.camera))
        best = _better(pair, best, tried[-1])
    if len(tried) > 1:
        # Of all that flow said, what was looked for nearest to where the camera really went.
        near = min(tried, key=lambda attempt: best.camera.past(attempt.way.seed).reach(pair.width, pair.height))
        best = best._replace(way=near.way)
    return best


def shifts(pair: FramePair, picture: Floats, most: int, mask: Floats | None = None) -> list[Similarity]:
    """The shifts from the first picture to another at half size that stand out, best first.

    Phase correlation (Kuglin and Hines 1975) of the pictures with brightness and contrast evened out. Shifts that
    flow finds by itself are left out.

    Args:
        pair: the first picture, and the frame's size.
        picture: float32 `[h, w]` at half size.
        most: how many.
        mask: float32 `[h, w]`, 0 to 1, how much of both counts; None: the edges fade out.
    """
    columns, rows = pair.layout.size
    window = _window(columns, rows) if mask is None else mask
    first, second = (np.fft.rfft2(_even(one) * window) for one in (pair.before.half, picture))
    cross = first.conj() * second
    strength = np.abs(cross)
    cross /= strength + 1e-3 * strength.max() + 1e-9
    surface: Any = np.fft.fftshift(np.fft.irfft2(cross, s=(rows, columns))).astype(np.float32)
    surface = cv2.GaussianBlur(surface, (3, 3), 0)
    floor = PEAK * float(surface.std())
    found = []
    for _ in range(most):
        _, highest, _, (x, y) = cv2.minMaxLoc(surface)
        if highest <= floor:
            break
        shift = complex((x - columns // 2) * pair.width / columns, (y - rows // 2) * pair.height / rows)
        if abs(shift) > LEAST_SHIFT * pair.diagonal:
            found.append(Similarity(1 + 0j, shift))
        surface[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = 0
    return found


def _attempt(pair: FramePair, flow: DenseFlow, seed: Similarity) -> Registration:
    way = FlowField(pair, flow, seed)
    found = _camera(pair, way, way.inside)
    if found.held < GOOD:
        found = _camera(pair, way, way.matched)
    return found


def _camera(pair: FramePair, way: FlowField, use: Mask) -> Registration:
    """The camera's motion of these vectors, if it makes the pictures more alike than standing still does."""
    layout = pair.layout
    camera = fit(
        layout.points, way.vectors, use, pair.before.weight, layout.columns, layout.rows, TOLERANCE * pair.diagonal
    )
    if camera is STILL:
        return _registered(pair, STILL, pair.stood, way)
    moved = _registered(pair, camera, pair.likeness(pair.drawn_back(camera)), way)
    alike = moved.alike[moved.seen]
    better = alike - pair.stood[moved.seen]
    # Where hardly a cell is for standing still, nobody needs to vote.
    if np.count_nonzero(better < -0.01) > 0.03 * better.size:
        still = _registered(pair, STILL, pair.stood, way)
        if (share := _share(pair, still, moved, way.alike)) != 0.5:
            return still if stands(share) else moved
    left = alike.size - float(alike.sum())
    if left < BETTER * (left + float(better.sum())):
        return moved
    return _registered(pair, STILL, pair.stood, way)


def _registered(pair: FramePair, camera: Similarity, alike: Floats, way: FlowField) -> Registration:
    seen = pair.seen(camera)
    # What a far shift leaves in view may be little, and alike by chance.
    count = max(1.0, float(np.count_nonzero(seen)), 0.3 * pair.before.count)
    return Registration(camera, alike, way, np.count_nonzero(seen & (alike > HELD)) / count, seen)


def _better(pair: FramePair, one: Registration, other: Registration) -> Registration:
    """The one that holds in more of the picture."""
    share = _share(pair, one, other, np.maximum(one.way.alike, other.way.alike))
    if share == 0.5:
        seen = one.seen & other.seen
        return one if one.alike[seen].sum() > other.alike[seen].sum() else other
    if one.camera is STILL and other.camera is not STILL:
        return one if stands(share) else other
    if other.camera is STILL and one.camera is not STILL:
        return other if stands(1 - share) else one
    return one if share > 0.5 else other


def _share(pair: FramePair, one: Registration, other: Registration, reached: Floats) -> float:
    """The share of the votes for the first of two motions.

    A motion holds in a cell that it keeps in view and leaves alike, or little more unlike than the best that was
    `reached` there. A cell that lies where it lay is against any motion that would have taken it out of the picture.
    """
    bound = 1 - UNLIKE - 2 * (1 - np.maximum(np.maximum(one.alike, other.alike), reached))
    np.maximum(bound, MATCH, out=bound)
    first = one.seen & (one.alike > bound)
    second = other.seen & (other.alike > bound)
    return votes(first & ~second, second & ~first, pair.layout.columns, pair.layout.rows)


def by_cell(planes: Floats, rows: int, columns: int) -> Floats:
    """Float32 `[n, h, w]` to the mean of each cell, `[n, rows, columns]`.

    `INTER_AREA` is that, also where cells are no whole number of pixels. One picture under the other, no boundary of
    theirs within a cell: OpenCV takes as long for three channels as for six of these.
    """
    count, height, width = planes.shape
    flat: Any = planes.reshape(count * height, width)
    if width == 4 * columns and height == 4 * rows:
        # Twice by 2x2, for which there is a fast path.
        flat = cv2.resize(flat, (2 * columns, 2 * rows * count), interpolation=cv2.INTER_AREA)
    flat = cv2.resize(flat, (columns, rows * count), interpolation=cv2.INTER_AREA)
    cells: Floats = flat.reshape(count, rows, columns)
    return cells


def _around(cells: Floats) -> Floats:
    """The mean of each cell and its neighbours, `[n, rows, columns]`."""
    means: Any = cv2.blur(cv2.merge(tuple(cells)), (3, 3), borderType=cv2.BORDER_REPLICATE)
    return means.reshape(*cells.shape[1:], -1).transpose(2, 0, 1)  # type: ignore[no-any-return]


def _drawn_back(picture: Any, camera: Similarity, pair: FramePair) -> Any:
    size = picture.shape[1::-1]
    return cv2.warpAffine(
        picture,
        camera.matrix(pair.width, pair.height, *size),
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _even(picture: Floats) -> Floats:
    """With brightness and contrast the same everywhere, as far as there is more than noise."""
    rest = picture - cv2.boxFilter(picture, -1, (9, 9))
    spread = cv2.boxFilter(rest * rest, -1, (9, 9))
    rest /= np.sqrt(spread + 16)
    return rest


def _cells(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a grey picture's cells."""
    return max(1, round(shape[0] / CELL)), max(1, round(shape[1] / CELL))


def _half(shape: tuple[int, ...]) -> tuple[int, int]:
    """Columns and rows of a grey picture at half size."""
    return max(CELL, shape[1] // 2), max(CELL, shape[0] // 2)


@lru_cache(maxsize=256)
def _layout(width: int, height: int, shape: tuple[int, int]) -> Layout:
    rows, columns = _cells(shape)
    size = _half(shape)
    whole = size == (4 * columns, 4 * rows)
    sides = size if whole else (shape[1], shape[0])
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    # To a tenth of a cell, or a still picture's own edges would be out of it.
    bound = (width / 2 - 0.4 * width / columns, height / 2 - 0.4 * height / rows)
    return Layout(
        rows,
        columns,
        size,
        middles(width, height, columns, rows),
        np.stack((x, y), -1),
        np.array((size[0] / shape[1], size[1] / shape[0]), np.float32),
        np.full((rows, columns, 2), (width / sides[0], height / sides[1]), np.float32),
        np.tile(np.array(bound, np.float32), rows * columns),
        shape == (2 * size[1], 2 * size[0]),
        whole,
    )


@lru_cache(maxsize=64)
def _window(columns: int, rows: int) -> Floats:
    return cv2.createHanningWindow((columns, rows), cv2.CV_32F)  # type: ignore[return-value]
