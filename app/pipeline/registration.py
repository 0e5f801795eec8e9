"""Registration of two small grey frames: the camera's motion from one to the other, and the motion of each cell.

The camera's motion is a similarity (a shift, a turn and a zoom), fitted to vectors many of which belong to things that
move by themselves. Points and vectors are complex numbers, x + iy in frame pixels from the middle of the frame, y down:
a similarity is then `a * p + t`, and a positive turn is clockwise on the screen.

No vector of the flow is trusted alone. It counts where the cell looks alike at both its ends, and a motion of the
camera counts where it makes the frames more alike than a standing camera does. *Alike* is the correlation of grey
levels: no change of brightness or contrast alters it, and noise has none.
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
"""How many tolerances a vector may be off and still follow a motion: at first, and where few vectors are that near."""
FEW = 0.5
"""Share of the vectors below which the wider tolerance is tried."""
LEAST = 6
"""Vectors that a fit needs; two would suffice if they were exact."""
MOST = 0.67
"""Share of the vectors that must hardly move for a fit to start from no motion: no other motion then has as many."""
OTHER = 0.2
"""Share of the vectors not following the first motion from which a second motion is sought among them."""
SAFE = 0.8
"""Share of the votes up to which a second motion is sought, where all vectors that do not follow the first vote against
it: a single motion would hardly get more votes than they do."""
HARDLY = 0.1
"""Tolerances that a motion must reach somewhere in the image: a seventh of a pixel at 640x480."""
SETTLED = 0.005
"""Share of the reach of the weights below which another step of a fit is useless: 0.02 pixels at 640x480."""
STANDS = 1.6
"""Factor of votes that a moving camera needs over a standing one: things that pass a standing camera may fill more."""
BLOCK = 4
"""Side of a block, cells. Blocks vote, not cells, so that a thing with much texture cannot outvote its surroundings."""


class Similarity(NamedTuple):
    """A similarity transform: it moves a point `p` of the image to `a * p + t`."""

    a: complex = 1 + 0j
    t: complex = 0j

    @property
    def rotation_deg(self) -> float:
        """Degrees, clockwise on the screen."""
        return math.degrees(cmath.phase(self.a))

    @property
    def zoom(self) -> float:
        """Factor by which it enlarges the image."""
        return abs(self.a)

    def past(self, other: Similarity) -> Similarity:
        """The similarity from where `other` puts a point to where this one puts it."""
        return Similarity(self.a / other.a, self.t - self.a / other.a * other.t)

    def reach(self, width: int, height: int) -> float:
        """The farthest that it moves any point of a frame, pixels."""
        return abs(self.a - 1) * math.hypot(width, height) / 2 + abs(self.t)

    def matrix(self, width: int, height: int, columns: int, rows: int) -> NDArray[np.float64]:
        """The similarity in pixels of a resized frame with so many columns and rows: an affine matrix `[2, 3]`."""
        x, y = width / columns, height / rows
        # The middle of the first pixel lies half a pixel off the corner.
        first = complex(x / 2 - width / 2, y / 2 - height / 2)
        there = self.a * first + self.t - first
        a = self.a
        return np.array(((a.real, -a.imag * y / x, there.real / x), (a.imag * x / y, a.real, there.imag / y)))


STILL = Similarity()


@lru_cache(maxsize=256)
def middles(width: int, height: int, columns: int, rows: int) -> Points:
    """The middles of the cells of a frame, row by row: complex64 `[rows * columns]`."""
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
    """The camera's motion, from vectors that start at the middles of `columns` x `rows` cells.

    Three candidates are compared: the two motions that most vectors follow, and a standing camera. The one that holds
    in most blocks of the image wins. So the camera's motion is found as long as moving things fill less of the textured
    area than the rest does; with a standing camera, up to about 60% of it.

    Args:
        points: complex64 `[n]`, of `middles`.
        vectors: complex64 `[n]`, the motion found at each point.
        use: bool `[n]`, the vectors to trust.
        weight: float32 `[n]`, how much to trust each; above 0.
        columns: columns of the grid.
        rows: rows of the grid.
        tolerance: error of a vector, pixels.
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
    # A slow motion is near to none: vectors that fit both must not vote for a standing camera.
    reach = min(wide, abs(best.t) / 3 + tolerance / 2) ** 2
    standing, going = use & (used.length < reach), use & (off < reach)
    if (standing > going).any() and stands(votes(standing, going, columns, rows)):
        return STILL
    return best


def votes(first: Mask, second: Mask, columns: int, rows: int) -> float:
    """The first motion's share of the blocks, 0 to 1. Blocks in which both hold equally many cells do not count.

    Args:
        first: bool `[n]`, the cells in which the first motion holds.
        second: bool `[n]`, the cells in which the second motion holds.
        columns: columns of the grid.
        rows: rows of the grid.
    """
    block, count = _blocks(columns, rows)
    more = np.bincount(block, first.view(np.int8) - second.view(np.int8), count)
    won, lost = np.count_nonzero(more > 0), np.count_nonzero(more < 0)
    return won / (won + lost) if won + lost else 0.5


def stands(share: float) -> bool:
    """Whether the camera counts as standing, given the share of the votes for that."""
    return share * STANDS > 1 - share


class _Vectors:
    """Vectors `d` that start at `p`, and their products that every step of a fit needs.

    The squared distance of a vector's end from where a motion ends, and the sums of least squares, are both linear in
    nine products of `p` and `d`. So each takes one matrix product instead of twenty calls of numpy, which take longer
    to begin than to run. For the same reason unused vectors stay in the arrays, with a weight of 0.
    """

    __slots__ = ("_products", "ends", "far", "length", "starts", "trust", "use")

    def __init__(self, p: Points, d: Points, use: Mask, weight: Floats) -> None:
        self.use, self.starts, self.ends = use, p, p + d
        self.far = float(abs(p[0]))
        """Distance of the outermost point from the middle."""
        self.trust = np.multiply(weight, use, dtype=np.float64)
        products = self._products = np.empty((9, p.size))
        start, move = products[1:3], products[3:5]
        products[0] = 1
        start[:], move[:] = p.view(np.float32).reshape(-1, 2).T, d.view(np.float32).reshape(-1, 2).T
        both = start * move[::-1]
        np.subtract(both[0], both[1], out=products[5])
        np.multiply(start, move, out=both)
        np.add(both[0], both[1], out=products[6])
        squares = products[1:5] ** 2
        np.add(squares[::2], squares[1::2], out=products[7:])
        self.length = products[8]
        """Float64 `[n]`: the squared length of each vector."""

    def only(self, use: Mask) -> _Vectors:
        """The same vectors, of which only some are used."""
        some = _Vectors.__new__(_Vectors)
        some.use, some.starts, some.ends, some.length, some.far = use, self.starts, self.ends, self.length, self.far
        some.trust, some._products = self.trust * use, self._products
        return some

    def off(self, camera: Similarity, by: float = 1.0, plus: float = 0.0) -> NDArray[np.float64]:
        """Float64 `[n]`: squared distance of each vector's end from the camera's motion; times `by`, plus `plus`."""
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
        """The motion of weighted least squares."""
        whole, px, py, dx, dy, cross, dot, square, _ = (self._products @ weight).tolist()
        middle, mean = complex(px, py) / whole, complex(dx, dy) / whole
        spread = square - whole * abs(middle) ** 2
        turn = (complex(dot, cross) - whole * middle.conjugate() * mean) / spread if spread > 0 else 0j
        return Similarity(1 + turn, mean - turn * middle)


def _motion(vectors: _Vectors, whole: int, tolerance: float) -> tuple[Similarity | None, NDArray[np.float64], float]:
    """The motion that most of the vectors follow, the squared distance of each vector from it, and the reach used."""
    use = vectors.use
    off, camera, count = vectors.length, STILL, 0
    for widening in NEAR:
        reach = tolerance * widening
        start = STILL
        if np.count_nonzero(use & (vectors.length < reach**2)) < MOST * whole:
            # OpenCV seeds its generator alike in every call, so the same vectors give the same motion.
            matrix, _ = cv2.estimateAffinePartial2D(
                vectors.starts[use].view(np.float32).reshape(-1, 2),
                vectors.ends[use].view(np.float32).reshape(-1, 2),
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
    """Least squares with each vector weighted by trust and nearness: Tukey's weights, which end at `reach`.

    Three steps, the first with twice the reach, because the few vectors that the motion was made of scatter. Two steps
    where the second one changes hardly anything.
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


@lru_cache(maxsize=256)
def _blocks(columns: int, rows: int) -> tuple[NDArray[np.int64], int]:
    """The block of each cell, and the number of blocks."""
    across = -(-columns // BLOCK)
    block = np.arange(rows)[:, None] // BLOCK * across + np.arange(columns)[None, :] // BLOCK
    return block.ravel(), int(block.max()) + 1


# --- two frames compared, cell by cell ---

Grey = NDArray[np.uint8]
DenseFlow = Callable[[Grey, Grey], Floats]
"""From two grey frames to float32 `[h, w, 2]`: the motion of each pixel of the first, dx and dy in grey pixels."""

CELL = 8
"""Side of a cell, grey pixels: 160x120 has 20x15."""
TEXTURE = 2.0
"""Grey levels: the standard deviation at half size from which a cell has texture. A wall has less than 1 after JPEG."""
PLENTY = 20.0
"""Grey levels: the standard deviation from which a cell counts about fully. Flow errs more where there is less."""
MATCH = 0.6
"""Correlation from which a cell is the same at both ends of its vector. Flow reaches up to 0.4 on noise."""
TOLERANCE = 0.002
"""Error of a vector where the image hardly moves, share of the frame's diagonal: 1.6 pixels at 640x480."""
HELD = 0.7
"""Correlation from which a cell lies where the camera's motion puts it."""
GOOD = 0.75
"""Share of the cells with texture that must lie there; below it, other motions are tried."""
AGAIN = 0.015
"""Share of the diagonal: a motion that reaches farther is taken out of the image, and flow runs again."""
PEAK = 6.0
"""Standard deviations from which a peak of the phase correlation is a shift. The highest of noise is about 4."""
LEAST_SHIFT = 0.02
"""Share of the diagonal below which flow finds a shift by itself."""
UNLIKE = 0.03
"""Unlikeness that a motion may leave and still hold, added to twice that of the best motion."""
BETTER = 0.95
"""Share of a standing camera's unlikeness that a moving one may leave at most, where nothing else decides."""


class Layout(NamedTuple):
    """Everything that follows from the sizes of a frame and of its grey frame."""

    rows: int
    columns: int
    """Rows and columns of cells."""
    size: tuple[int, int]
    """Columns and rows of an image at half size."""
    points: Points
    """complex64 `[n]`, the cells' middles, frame pixels; see `middles`."""
    raster: Floats
    """float32 `[h, w, 2]`: the place of each pixel at half size, x and y."""
    to_half: Floats
    """float32 `[2]`: pixels at half size for each grey pixel, x and y."""
    to_frame: Floats
    """float32 `[rows, columns, 2]`: frame pixels for each pixel at half size (each grey pixel unless `whole`); x, y."""
    bounds: Floats
    """float32 `[2 * n]`: greatest distance of a cell's middle from that of the frame with the whole cell in view; x, y,
    x, y…"""
    halved: bool
    """Whether the half size is exactly half."""
    whole: bool
    """Whether a cell is a whole number of pixels at half size."""


class GreyFrame:
    """One grey frame, also at half its size, and statistics of its cells.

    Args:
        grey: uint8 `[h, w]`.
        before: the frame before, of the same size; None: there is none.
    """

    __slots__ = ("cells", "count", "grey", "half", "mean", "product", "textured", "variance", "weight")

    def __init__(self, grey: Grey, before: GreyFrame | None = None) -> None:
        self.grey = grey
        rows, columns, size = _sizes(grey.shape)
        moments = np.empty((2 if before is None else 3, size[1], size[0]), np.float32)
        self.half: Floats = moments[0]
        """float32 `[h, w]`."""
        self.half[:] = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR)
        np.multiply(self.half, self.half, out=moments[1])
        if before is not None:
            np.multiply(self.half, before.half, out=moments[2])
        cells = by_cell(moments, rows, columns)
        self.cells = cells[0]
        """float32 `[rows, columns]`: the mean of each cell."""
        variance = (cells[1] - self.cells * self.cells).ravel()
        self.textured: Mask = variance >= TEXTURE**2
        """bool `[n]`: the cells with enough texture to show where they go."""
        self.count = np.count_nonzero(self.textured)
        """Number of textured cells."""
        self.weight: Floats = variance / (variance + PLENTY**2)
        """float32 `[n]`, 0 to 1: how well each cell shows it."""
        self.mean, square, *product = _around(cells)
        """float32 `[rows, columns]`, over each cell and its neighbours. One grey level of noise is added to
        `variance`, so that cells without texture are alike to nothing."""
        self.product: Floats | None = product[0] if product else None
        """Likewise, for the products with the frame before."""
        self.variance: Floats = square - self.mean * self.mean
        np.maximum(self.variance, 0, out=self.variance)
        self.variance += 1


class FlowField:
    """The motion of each cell, by dense flow.

    Args:
        pair: the two frames.
        flow: computes the flow.
        seed: a motion that is first taken out of the second frame; flow then finds the difference from it.
    """

    def __init__(self, pair: FramePair, flow: DenseFlow, seed: Similarity) -> None:
        self._pair, self.seed = pair, seed
        layout = pair.layout
        previous, current = pair.before.grey, pair.after.grey
        if seed is not STILL:
            current = pair.drawn_back(current, seed)
        dense = flow(previous, current)
        if layout.halved:
            # Flow is smooth, so two of each four pixels are as good as all. OpenCV would take three times as long to
            # halve two channels.
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
        """float32 `[n]`: length of the motion that flow had to find for each cell, pixels."""
        self.inside = pair.before.textured & pair.shown(there)
        """bool `[n]`: the cells with texture that are still in view."""

    @cached_property
    def alike(self) -> Floats:
        """float32 `[n]`, -1 to 1: how alike each cell is at both ends of its pixels' vectors."""
        pair = self._pair
        at: Any = self._half + pair.layout.raster
        if self.seed is not STILL:
            at = cv2.transform(at, self.seed.matrix(pair.width, pair.height, *pair.layout.size).astype(np.float32))
        there: Any = cv2.remap(pair.after.half, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        return pair.likeness(there)

    @cached_property
    def matched(self) -> Mask:
        """bool `[n]`: the vectors to trust."""
        return self.inside & (self.alike >= MATCH)


class FramePair:
    """Two grey frames of one size, taken from frames of `width` x `height` pixels and compared at half size."""

    def __init__(self, before: GreyFrame, after: GreyFrame, width: int, height: int) -> None:
        self.before, self.after, self.width, self.height = before, after, width, height
        self.diagonal = math.hypot(width, height)
        self.layout = _layout(width, height, before.grey.shape)

    @cached_property
    def stood(self) -> Floats:
        """`likeness` of the second frame with a standing camera."""
        after = self.after
        assert after.product is not None
        return self._correlation(after.mean, after.variance, after.product)

    def likeness(self, image: Floats) -> Floats:
        """float32 `[n]`: correlation of each cell and its neighbours with the same place of the first frame."""
        planes = np.empty((3, *image.shape), np.float32)
        planes[0] = image
        np.multiply(image, image, out=planes[1])
        np.multiply(image, self.before.half, out=planes[2])
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

    def drawn_back(self, image: Any, camera: Similarity) -> Any:
        """The second frame, `[h, w]` of any size and dtype, with the camera's motion taken out."""
        size = image.shape[1::-1]
        return cv2.warpAffine(
            image,
            camera.matrix(self.width, self.height, *size),
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def shown(self, points: Points) -> Mask:
        """bool `[n]`: the cells that lie in the frame as a whole when their middles are at these points."""
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
    """The result for a pair of frames."""

    camera: Similarity
    alike: Floats
    """float32 `[n]`: how alike the cells are after the camera's motion is taken out."""
    field: FlowField
    held: float
    """Share of the cells with texture that lie where the camera's motion puts them."""
    seen: Mask
    """bool `[n]`: the cells with texture that the camera still has in view."""


def same(pair: FramePair) -> bool:
    """Whether nothing can have moved: there is no texture, or both frames are equal."""
    before, after = pair.before, pair.after
    return not before.count or (
        before.cells.tobytes() == after.cells.tobytes() and before.grey.tobytes() == after.grey.tobytes()
    )


def register(pair: FramePair, flow: DenseFlow) -> Registration:
    """The camera's motion, and the motion of each cell.

    Flow finds motions of a few grey pixels. Where that explains too little, the shifts that phase correlation finds are
    tried. A motion that reaches far is taken out, and flow runs again on the rest.
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
        beyond = best.camera if best.field.seed is STILL else best.camera.past(best.field.seed)
        if beyond.reach(pair.width, pair.height) < AGAIN * pair.diagonal:
            break
        tried.append(_attempt(pair, flow, best.camera))
        best = _better(pair, best, tried[-1])
    if len(tried) > 1:
        # Use the flow whose seed is nearest to the camera's final motion.
        near = min(tried, key=lambda attempt: best.camera.past(attempt.field.seed).reach(pair.width, pair.height))
        best = best._replace(field=near.field)
    return best


def shifts(pair: FramePair, image: Floats, most: int, mask: Floats | None = None) -> list[Similarity]:
    """The shifts from the first frame to another image at half size that stand out, best first.

    Phase correlation (Kuglin and Hines 1975) of the images with brightness and contrast evened out. Shifts that flow
    finds by itself are left out.

    Args:
        pair: has the first frame and the frame's size.
        image: float32 `[h, w]` at half size.
        most: greatest number of shifts.
        mask: float32 `[h, w]`, 0 to 1, the weight of each pixel in both; None: the edges fade out.
    """
    columns, rows = pair.layout.size
    window = _window(columns, rows) if mask is None else mask
    first, second = (np.fft.rfft2(_even(half) * window) for half in (pair.before.half, image))
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
    field = FlowField(pair, flow, seed)
    found = _camera(pair, field, field.inside)
    if found.held < GOOD:
        found = _camera(pair, field, field.matched)
    return found


def _camera(pair: FramePair, field: FlowField, use: Mask) -> Registration:
    """The camera's motion by these vectors, if it makes the frames more alike than a standing camera does."""
    layout = pair.layout
    camera = fit(
        layout.points, field.vectors, use, pair.before.weight, layout.columns, layout.rows, TOLERANCE * pair.diagonal
    )
    if camera is STILL:
        return _registered(pair, STILL, pair.stood, field)
    moved = _registered(pair, camera, pair.likeness(pair.drawn_back(pair.after.half, camera)), field)
    alike = moved.alike[moved.seen]
    better = alike - pair.stood[moved.seen]
    # Where hardly any cell supports a standing camera, no vote is needed.
    if np.count_nonzero(better < -0.01) > 0.03 * better.size:
        still = _registered(pair, STILL, pair.stood, field)
        if (share := _share(pair, still, moved, field.alike)) != 0.5:
            return still if stands(share) else moved
    left = alike.size - float(alike.sum())
    if left < BETTER * (left + float(better.sum())):
        return moved
    return _registered(pair, STILL, pair.stood, field)


def _registered(pair: FramePair, camera: Similarity, alike: Floats, field: FlowField) -> Registration:
    seen = pair.seen(camera)
    # A far shift may leave little in view, which may be alike by chance.
    count = max(1.0, float(np.count_nonzero(seen)), 0.3 * pair.before.count)
    return Registration(camera, alike, field, np.count_nonzero(seen & (alike > HELD)) / count, seen)


def _better(pair: FramePair, first: Registration, second: Registration) -> Registration:
    """The registration that holds in more of the image."""
    share = _share(pair, first, second, np.maximum(first.field.alike, second.field.alike))
    if share == 0.5:
        seen = first.seen & second.seen
        return first if first.alike[seen].sum() > second.alike[seen].sum() else second
    if first.camera is STILL and second.camera is not STILL:
        return first if stands(share) else second
    if second.camera is STILL and first.camera is not STILL:
        return second if stands(1 - share) else first
    return first if share > 0.5 else second


def _share(pair: FramePair, first: Registration, second: Registration, reached: Floats) -> float:
    """The first motion's share of the votes, against the second.

    A motion holds in a cell that it keeps in view and leaves alike, or little more unlike than the best likeness
    `reached` there. A cell that has not moved votes against any motion that would have taken it out of view.
    """
    bound = 1 - UNLIKE - 2 * (1 - np.maximum(np.maximum(first.alike, second.alike), reached))
    np.maximum(bound, MATCH, out=bound)
    in_first = first.seen & (first.alike > bound)
    in_second = second.seen & (second.alike > bound)
    return votes(in_first & ~in_second, in_second & ~in_first, pair.layout.columns, pair.layout.rows)


def by_cell(planes: Floats, rows: int, columns: int) -> Floats:
    """Float32 `[n, h, w]` to the mean of each cell, `[n, rows, columns]`.

    `INTER_AREA` computes it, also where cells are no whole number of pixels. The planes lie one under the other,
    so that no cell crosses two of them: OpenCV takes as long for three channels as for six planes.
    """
    count, height, width = planes.shape
    flat: Any = planes.reshape(count * height, width)
    if width == 4 * columns and height == 4 * rows:
        # Two steps of 2x2 each, for which OpenCV has a fast path.
        flat = cv2.resize(flat, (2 * columns, 2 * rows * count), interpolation=cv2.INTER_AREA)
    flat = cv2.resize(flat, (columns, rows * count), interpolation=cv2.INTER_AREA)
    cells: Floats = flat.reshape(count, rows, columns)
    return cells


def _around(cells: Floats) -> Floats:
    """The mean of each cell and its neighbours, `[n, rows, columns]`."""
    means: Any = cv2.blur(cv2.merge(tuple(cells)), (3, 3), borderType=cv2.BORDER_REPLICATE)
    return means.reshape(*cells.shape[1:], -1).transpose(2, 0, 1)  # type: ignore[no-any-return]


def _even(image: Floats) -> Floats:
    """Evens out brightness and contrast, as far as there is more than noise."""
    rest = image - cv2.boxFilter(image, -1, (9, 9))
    spread = cv2.boxFilter(rest * rest, -1, (9, 9))
    rest /= np.sqrt(spread + 16)
    return rest


@lru_cache(maxsize=256)
def _sizes(shape: tuple[int, ...]) -> tuple[int, int, tuple[int, int]]:
    """Of a grey frame: rows and columns of its cells, and its columns and rows at half size."""
    half = max(CELL, shape[1] // 2), max(CELL, shape[0] // 2)
    return max(1, round(shape[0] / CELL)), max(1, round(shape[1] / CELL)), half


@lru_cache(maxsize=256)
def _layout(width: int, height: int, shape: tuple[int, int]) -> Layout:
    rows, columns, size = _sizes(shape)
    whole = size == (4 * columns, 4 * rows)
    sides = size if whole else (shape[1], shape[0])
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    # With a margin of a tenth of a cell, or the edges of a still image would count as out of view.
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
