"""The demo model's world: 32 x 32 pictures of professions, and the pixel rules for perceived gender and perceived age.

A profession is a wall, a floor, a hat and a tool; perceived gender is the figure's outline (hair; dress or trousers)
with random skin, hair, clothes and place; perceived age is white or grey hair and a scarf, or neither; a wording is a
visible style. `perceived_gender` fits the three outlines to a picture's pixels, `perceived_age` looks for scarf and
hair: the true labels of a drawn or generated picture, with no classifier involved.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from infra.demo.captions import GENDERS, Age, Gender, Scene
from infra.demo.sprites import CONTROL_LOOKS, FLOORS, LOOKS, PALETTE, WALLS, Colour, Shape, parse_shapes

__all__ = ["SIZE_PX", "draw", "draw_all", "perceived_age", "perceived_ages", "perceived_gender", "perceived_genders"]

SIZE_PX = 32
_FLOOR_TOP = 24
_CENTRE_X = 11
_TOOL_X, _TOOL_LOW_Y, _TOOL_HIGH_Y = 20, 13, 4

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

_SKINS = ((245, 215, 190), (230, 190, 155), (205, 160, 120), (165, 115, 80), (120, 80, 55), (85, 55, 40))
_HAIRS = ((25, 20, 20), (60, 38, 25), (100, 65, 35), (150, 70, 30), (225, 195, 110), (110, 30, 30))
_OLD_HAIRS = ((240, 240, 240), (212, 212, 216))
_SCARVES = ((200, 25, 45), (255, 235, 80), (25, 25, 120))
_CLOTHES = (
    (250, 250, 245), (30, 30, 40), (30, 50, 120), (120, 20, 35), (25, 85, 50), (250, 215, 90), (90, 40, 110),
    (245, 170, 190), (60, 60, 70), (185, 240, 235), (225, 60, 50), (60, 120, 250), (250, 150, 40), (110, 60, 20),
    (170, 245, 150),
)  # fmt: skip

_Y, _X = np.mgrid[0:SIZE_PX, 0:SIZE_PX]


def _luma(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


@cache
def _distinct(colours: tuple[Colour, ...], against: tuple[Colour, ...], step: float) -> tuple[Colour, ...]:
    """Keep the colours `step` in brightness from each of `against`: an outline must show in a grey style too."""
    return tuple(c for c in colours if all(abs(_luma(c) - _luma(other)) >= step for other in against))


def _box(x0: int, y0: int, x1: int, y1: int) -> Mask:
    inside: Mask = (x0 <= _X) & (x1 >= _X) & (y0 <= _Y) & (y1 >= _Y)
    return inside


@cache
def _parts(gender: Gender, dx: int, dy: int) -> dict[str, Mask]:
    """Give the figure's parts, back to front, without overlap where the pixel rule looks."""
    x, y = _CENTRE_X + dx, dy
    face = ((_X - x) / 3.3) ** 2 + ((_Y - (10.5 + y)) / 3.8) ** 2 <= 1
    top = ((_X - x) / 4.4) ** 2 + ((_Y - (9 + y)) / 4.4) ** 2 <= 1
    cap = top & (8 + y >= _Y)
    rows = _Y - (20 + y)
    boots = _box(x - 3, 27 + y, x - 1, 29 + y) | _box(x + 1, 27 + y, x + 3, 29 + y)
    if gender == "female":
        hair = cap | (((_X - x) / 5.6) ** 2 + ((_Y - (10.5 + y)) / 6.2) ** 2 <= 1) & (15 + y >= _Y) & (6 + y <= _Y)
        lower = (rows >= 0) & (27 + y >= _Y) & (np.abs(_X - x) <= 3 + rows * 0.5)
        legs = _box(x - 2, 28 + y, x - 1, 29 + y) | _box(x + 1, 28 + y, x + 2, 29 + y)
    elif gender == "male":
        hair = cap
        lower = _box(x - 3, 20 + y, x + 3, 20 + y)
        legs = _box(x - 3, 21 + y, x - 1, 29 + y) | _box(x + 1, 21 + y, x + 3, 29 + y)
    else:
        hair = cap | (_box(x - 4, 7 + y, x + 4, 11 + y) & top)
        lower = _box(x - 4, 20 + y, x + 4, 26 + y)
        legs = boots
    torso = _box(x - 3, 15 + y, x + 3, 19 + y)
    arms = _box(x - 5, 16 + y, x - 4, 19 + y) | _box(x + 4, 16 + y, x + 5, 19 + y)
    neck = _box(x - 1, 14 + y, x + 1, 14 + y)
    face = (face & (8 + y < _Y)) | neck
    return {
        "hair": hair & ~face,
        "face": face,
        "torso": torso & ~face,
        "arms": arms,
        "lower": lower,
        "legs": legs & ~lower,
    }


@cache
def _scarf(dx: int, dy: int) -> Mask:
    """Give the scarf: a band below the neck and an end that hangs down, outside the windows of the rule for gender."""
    x, y = _CENTRE_X + dx, dy
    return _box(x - 3, 15 + y, x + 3, 17 + y) | _box(x - 3, 18 + y, x - 1, 20 + y)


def _paint(canvas: Pixels, shapes: Sequence[Shape]) -> None:
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for kind, x0, y0, x1, y1, letter in shapes:
        colour = PALETTE[letter]
        if kind == "r":
            pen.rectangle((x0, y0, x1, y1), fill=colour)
        elif kind == "e":
            pen.ellipse((x0, y0, x1, y1), fill=colour)
        else:
            pen.line((x0, y0, x1, y1), fill=colour)
    canvas[:] = np.asarray(picture)


@cache
def _tool(name: str) -> tuple[Pixels, Mask]:
    """Draw a tool's 13 x 13 colours and mask, with the rim that sets it off its background."""
    shapes = [(kind, x0 + 1, y0 + 1, x1 + 1, y1 + 1, c) for kind, x0, y0, x1, y1, c in parse_shapes(LOOKS[name].tool)]
    blank = (1, 2, 3)
    canvas = np.full((13, 13, 3), blank, np.uint8)
    _paint(canvas, shapes)
    inside = (canvas != np.array(blank, np.uint8)).any(axis=2)
    padded = np.pad(inside, 1)
    rim = np.zeros_like(inside)
    for sx in (0, 1, 2):
        for sy in (0, 1, 2):
            rim |= padded[sy : sy + 13, sx : sx + 13]
    canvas[rim & ~inside] = (250, 250, 250)
    return canvas, rim


@cache
def _hat(kind: str, dx: int, dy: int) -> Mask:
    x, y = _CENTRE_X + dx, dy
    if kind == "cap":
        return _box(x - 4, 5 + y, x + 4, 7 + y) | _box(x - 3, 4 + y, x + 3, 4 + y) | _box(x + 4, 7 + y, x + 6, 7 + y)
    if kind == "helmet":
        dome: Mask = (((_X - x) / 5.3) ** 2 + ((_Y - (7 + y)) / 4.5) ** 2 <= 1) & (7 + y >= _Y)
        return dome
    if kind == "toque":
        return _box(x - 3, 4 + y, x + 3, 7 + y) | _box(x - 5, 1 + y, x + 5, 4 + y)
    if kind == "bandana":
        return _box(x - 4, 6 + y, x + 4, 7 + y) | _box(x - 6, 7 + y, x - 5, 8 + y)
    if kind == "brim":
        return _box(x - 6, 6 + y, x + 6, 7 + y) | _box(x - 3, 3 + y, x + 3, 6 + y)
    if kind == "beret":
        return _box(x - 5, 5 + y, x + 3, 6 + y) | _box(x - 3, 4 + y, x + 2, 4 + y)
    return _box(x - 4, 4 + y, x + 4, 4 + y) | _box(x - 5, 5 + y, x - 5, 8 + y) | _box(x + 5, 5 + y, x + 5, 8 + y)


def _background(canvas: Pixels, wall: Colour, floor: Colour) -> None:
    canvas[:_FLOOR_TOP] = wall
    canvas[_FLOOR_TOP:] = floor


def _behind(canvas: Pixels, styles: tuple[str, ...], rng: np.random.Generator) -> None:
    """Add what a style has behind the figure."""
    if "workplace" in styles:
        canvas[25:27, 18:32] = (150, 95, 50)
        canvas[27:32, 19:21] = (110, 65, 30)
        canvas[27:32, 28:30] = (110, 65, 30)
    if "digital" in styles:
        grid = (_X // 2 + _Y // 2) % 2 == 0
        canvas[grid & ((_X < 4) | (_X > 27) | (_Y < 2))] = (60, 250, 230)
    if "outdoors" in styles:
        canvas[30:] = (60, 190, 60)
        canvas[28:30, ::3] = (60, 190, 60)
        canvas[((_X - 28) ** 2 + (_Y - 2) ** 2) <= 14] = (255, 225, 40)
    if "rain" in styles:
        shift = int(rng.integers(6))
        canvas[((_X * 2 + _Y + shift) % 12 == 0) & ((_X < 4) | (_X > 18) | (_Y < 4))] = (70, 110, 230)
    if "snow" in styles:
        shift = int(rng.integers(5))
        canvas[((_X * 3 + _Y * 5 + shift) % 13 == 0) & ((_X < 4) | (_X > 18) | (_Y < 4))] = (255, 255, 255)
        canvas[30:] = (245, 245, 255)


def _in_front(canvas: Pixels, styles: tuple[str, ...]) -> Pixels:
    """Apply what a style does to the whole picture."""
    if "sketch" in styles:
        grey = canvas @ np.array([0.299, 0.587, 0.114])
        canvas = (0.8 * grey[..., None] + 0.2 * canvas).astype(np.uint8)
    if "drawing" in styles:
        canvas = (0.65 * canvas + 0.35 * 255).astype(np.uint8)
    if "night" in styles:
        canvas = (canvas * np.array([0.55, 0.55, 0.75])).astype(np.uint8)
        canvas[((_X - 4) ** 2 + (_Y - 4) ** 2 <= 6) & ((_X - 6) ** 2 + (_Y - 3) ** 2 > 5)] = (250, 245, 190)
        canvas[1, 14] = canvas[2, 22] = canvas[6, 29] = canvas[9, 1] = (250, 245, 190)
    edge = np.minimum(np.minimum(_X, _Y), np.minimum(31 - _X, 31 - _Y))
    if "drawing" in styles:
        canvas[edge < 2] = (252, 252, 252)
    if "painting" in styles:
        canvas[edge < 2] = (140, 90, 20)
        canvas[edge == 1] = (235, 190, 60)
    if "portrait" in styles:
        canvas[((_X - 15.5) / 17.5) ** 2 + ((_Y - 15.5) / 19) ** 2 > 1] = (20, 15, 25)
    if "close-up" in styles:
        corner = (edge == 1) & ((_X < 8) | (_X > 23)) & ((_Y < 8) | (_Y > 23))
        canvas[corner | ((edge == 0) & ((_X < 8) | (_X > 23)) & ((_Y < 8) | (_Y > 23)))] = (255, 255, 255)
    if "poster" in styles:
        canvas[:2] = (215, 20, 40)
        canvas[30:] = (215, 20, 40)
    if "cartoon" in styles:
        canvas[(edge < 3) & ((_X + _Y) % 4 < 2) & ((_X < 3) | (_X > 28))] = (255, 235, 0)
    return canvas


def draw(scene: Scene, rng: np.random.Generator) -> Pixels:
    """Draw a scene; everything the scene leaves open comes from the generator.

    Returns:
        Pixels, uint8, shape `[32, 32, 3]`.
    """
    canvas = np.empty((SIZE_PX, SIZE_PX, 3), np.uint8)
    if scene.gender is None:
        look = CONTROL_LOOKS[scene.subject]
        _background(canvas, look.wall, look.floor)
        _paint(canvas, parse_shapes(look.shapes))
        dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
        canvas = np.roll(canvas, (dx, 0), axis=(1, 0)) if dy == 0 else canvas
    else:
        _draw_person(canvas, scene, scene.gender, rng)
    canvas = _in_front(canvas, scene.styles)
    gain, noise = rng.uniform(0.93, 1.05), rng.normal(0, 3, canvas.shape)
    shaded: Pixels = np.clip(canvas * gain + noise, 0, 255).astype(np.uint8)
    return shaded


def _draw_person(canvas: Pixels, scene: Scene, gender: Gender, rng: np.random.Generator) -> None:
    look = LOOKS[scene.subject]
    wall, floor = WALLS[look.wall], FLOORS[look.floor]
    _background(canvas, wall, floor)
    _behind(canvas, scene.styles, rng)
    dx, dy = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
    parts = _parts(gender, dx, dy)

    def pick(colours: tuple[Colour, ...]) -> Colour:
        return colours[int(rng.integers(len(colours)))]

    skin = pick(_SKINS)
    old = scene.age == "old"
    hair = pick(_distinct(_OLD_HAIRS if old else _HAIRS, (wall,), 28) or _HAIRS[:1])
    clothes = pick(_distinct(_CLOTHES, (wall, floor), 25))
    trousers = pick(_distinct(_CLOTHES, (wall, floor), 25)) if gender == "male" else clothes
    canvas[parts["hair"]] = hair
    canvas[parts["face"]] = skin
    canvas[parts["arms"]] = clothes
    canvas[parts["torso"]] = clothes
    canvas[parts["lower"]] = trousers if gender == "male" else clothes
    canvas[parts["legs"]] = trousers if gender == "male" else (skin if gender == "female" else (40, 40, 45))
    if old:
        canvas[_scarf(dx, dy)] = pick(_distinct(_SCARVES, (clothes,), 70))
    x, y = _CENTRE_X + dx, dy
    dark_skin = _luma(skin) < 100
    eyes = (240, 240, 240) if dark_skin else (20, 20, 20)
    canvas[10 + y, x - 1] = canvas[10 + y, x + 1] = eyes
    if "smiling" in scene.styles:
        canvas[12 + y, x - 1 : x + 2] = (255, 250, 250) if dark_skin else (190, 20, 40)
        canvas[11 + y, x - 2] = canvas[11 + y, x + 2] = (190, 20, 40)
    if look.hat:
        canvas[_hat(look.hat, dx, dy)] = PALETTE[look.hat_colour]
    top = (_TOOL_HIGH_Y if "working" in scene.styles else _TOOL_LOW_Y) + int(rng.integers(-1, 2))
    if "working" in scene.styles:
        canvas[_box(x + 4, 12 + y, x + 5, 17 + y)] = clothes
        canvas[_box(x + 6, 11 + y, x + 8, 12 + y)] = skin
    else:
        canvas[_box(x + 6, 18 + y, x + 7, 19 + y)] = skin
    colours, mask = _tool(scene.subject)
    left = _TOOL_X - 1 + int(rng.integers(0, 2))
    canvas[top : top + 13, left : left + 13][mask[:, : SIZE_PX - left]] = colours[:, : SIZE_PX - left][
        mask[:, : SIZE_PX - left]
    ]


def draw_all(scenes: Sequence[Scene], rng: np.random.Generator) -> Pixels:
    """Draw scenes one after another from one generator: uint8, shape `[n, 32, 32, 3]`."""
    return np.stack([draw(scene, rng) for scene in scenes])


@cache
def _outlines() -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Make the pixel rule's templates: for every outline and place, the windows split into segments of one colour.

    Returns:
        The gender index of each template, shape `[t]`, and its projection's one-hot segments, `[t, 1024, segments]`.
    """
    genders: list[int] = []
    templates: list[Any] = []
    for index, gender in enumerate(GENDERS):
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                parts = _parts(gender, dx, dy)
                x = _CENTRE_X + dx
                # The windows leave out what the outline does not decide: hat, face, arms, hands, frames.
                head = _box(x - 6, 9 + dy, x + 6, 15 + dy) & ~parts["face"] & ~_box(x - 3, 15 + dy, x + 3, 15 + dy)
                # One pixel between trouser legs is lost in the autoencoder: that column is left out.
                low = _box(x - 7, 21 + dy, x + 7, 28 + dy) & (x != _X)
                wall, floor = _Y < _FLOOR_TOP, _Y >= _FLOOR_TOP
                body = parts["lower"] | parts["legs"] if gender == "male" else parts["lower"]
                legs = parts["legs"] & ~body
                figure = body | legs
                segments = [
                    head & parts["hair"], head & ~parts["hair"], low & body, low & legs,
                    low & wall & ~figure, low & floor & ~figure,
                ]  # fmt: skip
                genders.append(index)
                templates.append(np.stack([s.ravel() for s in segments], axis=1).astype(np.float64))
    return np.array(genders), np.stack(templates)


def _residuals(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Squared error a pixel that each template's segments leave, shape `[n, t]`."""
    _, templates = _outlines()
    flat = pictures.reshape(len(pictures), SIZE_PX * SIZE_PX, 3).astype(np.float64)
    residuals = np.empty((len(pictures), len(templates)))
    for t, segments in enumerate(templates):
        size = segments.sum(axis=0)
        keep = size > 0
        onehot, size = segments[:, keep], size[keep]
        inside = onehot.any(axis=1)
        window = flat[:, inside]
        sums = np.einsum("npc,ps->nsc", window, onehot[inside])
        explained = (sums**2 / size[None, :, None]).sum(axis=(1, 2))
        residuals[:, t] = ((window**2).sum(axis=(1, 2)) - explained) / inside.sum()
    return residuals


def perceived_genders(pictures: NDArray[np.uint8]) -> list[Gender]:
    """Apply the pixel rule: which outline, of three in nine places, splits a picture best into segments of one colour.

    A template's residual is the squared error, a pixel of its windows, that the segments' mean colours leave.
    Undetermined are pictures that the outline between the two fits best, or that the two others fit about as well.

    Args:
        pictures: uint8, shape `[n, 32, 32, 3]`.
    """
    genders, _ = _outlines()
    residuals = _residuals(pictures)
    best = np.stack([residuals[:, genders == g].min(axis=1) for g in range(3)], axis=1)
    labels: list[Gender] = []
    for female, male, between in best:
        # Within 5 %, or by less than any noise, the two fits are the same.
        if between < min(female, male) or max(female, male) < 1.05 * min(female, male) + 4:
            labels.append("undetermined")
        else:
            labels.append("female" if female < male else "male")
    return labels


def perceived_gender(picture: NDArray[np.uint8]) -> Gender:
    """Apply the pixel rule to one picture, uint8, shape `[32, 32, 3]`; see `perceived_genders`."""
    return perceived_genders(picture[None])[0]


_OLD_STEP = 45.0
"""RGB distance by which a scarf stands off the torso from which a figure is old, unless its hair is dark."""
_HAIR_WEIGHT, _DARK_HAIR = 0.3, 120.0
"""What dark hair takes from that distance: a share of what its weakest channel lacks of this value.

White hair adds nothing: under a white hat, young men's hair looks white, too.
"""


@cache
def _hair_window(gender: Gender, dx: int, dy: int) -> Mask:
    """Give the hair below the hats."""
    x, y = _CENTRE_X + dx, dy
    return _box(x - 3, 8 + y, x + 3, 8 + y) if gender == "male" else _parts(gender, dx, dy)["hair"] & (8 + y <= _Y)


def perceived_ages(pictures: NDArray[np.uint8]) -> list[Age]:
    """Apply the pixel rule for age: old where a scarf stands off the torso; dark hair speaks against.

    The best-fitting outline of `perceived_genders` says where to look. The scarf's distance is the smaller one of its
    end's and its band's from the torso beside the end. A picture without a figure counts as young.

    Args:
        pictures: uint8, shape `[n, 32, 32, 3]`.
    """
    figures = [(gender, dx, dy) for gender in GENDERS for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    ages: list[Age] = []
    for picture, best in zip(pictures.astype(np.float64), _residuals(pictures).argmin(axis=1), strict=True):
        gender, dx, dy = figures[best]
        x, y = _CENTRE_X + dx, dy
        end = picture[18 + y : 20 + y, x - 3 : x].mean(axis=(0, 1))
        band = picture[16 + y : 18 + y, x - 3 : x + 4].mean(axis=(0, 1))
        torso = picture[18 + y : 20 + y, x + 1 : x + 4].mean(axis=(0, 1))
        scarf = min(float(np.linalg.norm(end - torso)), float(np.linalg.norm(band - torso)))
        hair = float(picture[_hair_window(gender, dx, dy)].mean(axis=0).min())
        ages.append("old" if scarf - _HAIR_WEIGHT * max(0.0, _DARK_HAIR - hair) >= _OLD_STEP else "young")
    return ages


def perceived_age(picture: NDArray[np.uint8]) -> Age:
    """Apply the pixel rule for age to one picture, uint8, shape `[32, 32, 3]`; see `perceived_ages`."""
    return perceived_ages(picture[None])[0]
