"""How close a restored image is to the original, and how classical filling restores it.

Images are floats in [0, 1]. Letters in shapes: h w c height, width, channels.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu


def psnr(
    original: Float[np.ndarray, "h w c"],
    restored: Float[np.ndarray, "h w c"],
    where: Bool[np.ndarray, "h w"] | None = None,
) -> float:
    """Peak signal-to-noise ratio [dB]: -10 log10 of the mean squared error; infinite if equal.

    Args:
        original: the image.
        restored: what it is compared with.
        where: the pixels that count; all if not given.

    Raises:
        ValueError: no pixel counts, or the shapes differ.
    """
    _check(original, restored)
    errors = np.square(original.astype(np.float64) - restored)
    errors = errors if where is None else errors[where]
    if not errors.size:
        raise ValueError("no pixel is to be compared. Choose at least one.")
    mean = errors.mean()
    return float(-10 * np.log10(mean)) if mean > 0 else float("inf")


def ssim(original: Float[np.ndarray, "h w c"], restored: Float[np.ndarray, "h w c"]) -> float:
    """Structural similarity, mean over pixels and channels (Wang et al. 2004, eq. 13).

    Means, variances and the covariance are weighted by a Gaussian of sigma 1.5 in windows of
    11 x 11 that lie inside the image; K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: the image is smaller than a window, or the shapes differ.
    """
    _check(original, restored)
    if min(original.shape[:2]) < 11:
        raise ValueError(f"an image of {original.shape[:2]} pixels has no window of 11 x 11.")

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5, axes=(0, 1))[5:-5, 5:-5]

    x, y = original.astype(np.float64), restored.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mx * my + c1) * (2 * both + c2)
    return float((similar / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def _check(original: np.ndarray, restored: np.ndarray) -> None:
    if original.shape != restored.shape:
        raise ValueError(
            f"images of shapes {original.shape} and {restored.shape} cannot be compared."
        )


def median_fill(
    image: Float[np.ndarray, "h w c"], hidden: Bool[np.ndarray, "h w"], *, radius: int = 2
) -> Float[np.ndarray, "h w c"]:
    """Each hidden pixel becomes the median of the visible ones around it, channel by channel.

    The window has 2 radius + 1 pixels a side, and grows by one on each side where it shows none.

    Args:
        image: the image; what is under `hidden` is not looked at.
        hidden: the pixels to fill.
        radius: of the first window [pixels].

    Raises:
        ValueError: every pixel is hidden.
    """
    _some_visible(hidden)
    filled = image.copy()
    seen = np.where(hidden[..., None], np.nan, image)
    rows, columns = np.nonzero(hidden)
    while len(rows):
        side = 2 * radius + 1
        around = np.pad(seen, ((radius, radius), (radius, radius), (0, 0)), constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(around, (side, side), axis=(0, 1))
        found = windows[rows, columns].reshape(len(rows), image.shape[2], -1)  # [m c side^2]
        some = ~np.isnan(found[:, 0]).all(axis=1)
        filled[rows[some], columns[some]] = np.nanmedian(found[some], axis=2)
        rows, columns, radius = rows[~some], columns[~some], radius + 1
    return filled


def biharmonic_fill(
    image: Float[np.ndarray, "h w c"], hidden: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w c"]:
    """Hidden pixels become those that bend least: the sum of squared Laplacians is smallest.

    The Laplacian of a pixel is its number of neighbours inside the image times its value minus
    theirs. Away from the border its square is the 13-point biharmonic stencil.

    Args:
        image: the image; what is under `hidden` is not looked at.
        hidden: the pixels to fill.

    Raises:
        ValueError: every pixel is hidden.
    """
    _some_visible(hidden)
    filled = image.copy()
    flat = hidden.ravel()
    if not flat.any():
        return filled
    number = np.arange(hidden.size).reshape(hidden.shape)
    one = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
    other = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
    edges = coo_array((np.ones(len(one)), (one, other)), shape=(hidden.size, hidden.size))
    edges = (edges + edges.T).tocsr()
    laplacian = diags_array(edges.sum(axis=1)) - edges
    bending = (laplacian.T @ laplacian).tocsr()[flat]
    visible = image.reshape(hidden.size, -1)[~flat].astype(np.float64)
    solve = splu(bending[:, flat].tocsc()).solve
    filled[hidden] = solve(-(bending[:, ~flat] @ visible))
    return filled


def _some_visible(hidden: np.ndarray) -> None:
    if hidden.all():
        raise ValueError("every pixel is hidden, so there is nothing to fill from.")
