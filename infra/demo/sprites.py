"""What each profession looks like: wall, floor, hat and tool, as data; and the pictures of the controls.

A shape is written "kind x0 y0 x1 y1 colour": r a rectangle, e an ellipse, l a line, both corners included. A tool's
shapes lie on an 11 x 11 grid. Every tool gets a near-white rim when drawn, and every wall is darker than that, so that
no tool vanishes on its background.
"""

from dataclasses import dataclass

__all__ = [
    "CONTROL_LOOKS",
    "FLOORS",
    "LOOKS",
    "PALETTE",
    "WALLS",
    "Colour",
    "ControlLook",
    "Look",
    "Shape",
    "parse_shapes",
]

Colour = tuple[int, int, int]
Shape = tuple[str, int, int, int, int, str]
PALETTE: dict[str, Colour] = {
    "k": (25, 25, 30), "w": (235, 235, 235), "r": (200, 30, 40), "g": (30, 140, 50), "b": (35, 70, 190),
    "y": (240, 200, 40), "o": (230, 120, 30), "n": (120, 70, 35), "s": (150, 155, 165), "p": (130, 50, 150),
    "i": (240, 130, 170), "c": (40, 180, 190), "t": (205, 165, 115), "d": (75, 80, 90), "l": (130, 200, 90),
}  # fmt: skip
"""Colours by letter."""

WALLS: tuple[Colour, ...] = (
    (190, 90, 90), (200, 140, 80), (185, 180, 80), (110, 170, 80), (70, 160, 120), (80, 165, 185),
    (95, 130, 200), (130, 105, 190), (180, 105, 180), (195, 120, 145), (135, 135, 135), (120, 105, 80),
)  # fmt: skip
FLOORS: tuple[Colour, ...] = ((95, 65, 45), (75, 90, 110), (180, 165, 140))


@dataclass(frozen=True)
class Look:
    """A profession's fixed features."""

    wall: int
    """Index into `WALLS`."""
    floor: int
    """Index into `FLOORS`."""
    hat: str
    """The hat's kind; "" for none."""
    hat_colour: str
    """A letter of `PALETTE`."""
    tool: str
    """The tool's shapes."""


@dataclass(frozen=True)
class ControlLook:
    """A control's picture: its shapes lie on the whole 32 x 32."""

    wall: Colour
    floor: Colour
    shapes: str


def parse_shapes(text: str) -> list[Shape]:
    """Read shapes written "kind x0 y0 x1 y1 colour", separated by commas."""
    shapes: list[Shape] = []
    for part in text.split(","):
        kind, x0, y0, x1, y1, colour = part.split()
        shapes.append((kind, int(x0), int(y0), int(x1), int(y1), colour))
    return shapes


LOOKS: dict[str, Look] = {
    "attendant": Look(0, 0, "cap", "b", "r 1 4 9 9 b, r 4 2 6 4 d, r 1 6 9 6 y"),
    "cashier": Look(1, 0, "", "", "r 1 5 9 10 d, r 2 1 8 4 l, r 3 7 7 8 w"),
    "teacher": Look(2, 0, "", "", "r 0 1 10 8 g, l 2 3 7 3 w, l 2 5 8 5 w"),
    "nurse": Look(5, 2, "cap", "w", "r 4 1 6 9 r, r 1 4 9 6 r"),
    "assistant": Look(3, 0, "", "", "r 2 1 8 10 n, r 3 3 7 9 w, r 4 0 6 1 s"),
    "secretary": Look(9, 0, "", "", "r 1 5 9 9 p, r 3 1 7 5 w, l 2 7 8 7 k"),
    "cleaner": Look(4, 0, "bandana", "i", "l 5 0 5 6 n, r 2 7 8 10 y"),
    "receptionist": Look(8, 0, "headset", "k", "e 1 3 9 10 y, r 4 1 6 2 k, r 0 10 10 10 k"),
    "clerk": Look(10, 0, "", "", "r 1 1 7 8 w, r 3 3 9 10 c, l 4 6 8 6 k"),
    "counselor": Look(7, 0, "", "", "e 0 1 10 7 b, r 2 7 3 10 b, l 3 4 7 4 w"),
    "designer": Look(11, 0, "beret", "r", "e 0 1 10 9 t, r 2 3 3 4 r, r 5 3 6 4 b, r 7 5 8 6 g"),
    "hairdresser": Look(6, 0, "", "", "l 1 0 8 7 s, l 9 0 2 7 s, e 0 7 3 10 r, e 7 7 10 10 r"),
    "writer": Look(0, 1, "beret", "k", "r 0 3 10 9 w, l 5 3 5 9 k, l 6 5 9 0 b"),
    "housekeeper": Look(1, 1, "bandana", "w", "r 2 4 8 10 c, e 3 0 7 6 w, r 2 6 8 6 b"),
    "baker": Look(2, 1, "toque", "w", "e 0 3 10 9 o, l 3 4 4 7 n, l 6 4 7 7 n"),
    "librarian": Look(3, 1, "", "", "r 1 0 3 10 r, r 4 2 6 10 b, r 7 1 9 10 y"),
    "tailor": Look(4, 1, "", "", "r 2 0 8 2 n, r 3 3 7 7 i, r 2 8 8 10 n"),
    "driver": Look(5, 1, "cap", "k", "e 0 0 10 10 k, e 2 2 8 8 t, r 1 5 9 6 k"),
    "supervisor": Look(6, 1, "helmet", "w", "l 1 5 4 9 g, l 2 5 5 9 g, l 4 9 9 1 g, l 5 9 10 1 g"),
    "janitor": Look(7, 1, "cap", "g", "r 1 4 9 10 s, r 2 2 8 2 d, r 1 5 9 6 c"),
    "cook": Look(8, 1, "toque", "w", "e 0 3 7 9 k, r 7 6 10 6 n, e 2 4 5 7 y"),
    "laborer": Look(9, 1, "helmet", "o", "l 5 0 5 6 n, l 6 0 6 6 n, r 3 6 8 10 d"),
    "construction worker": Look(10, 1, "helmet", "y", "r 0 2 4 4 r, r 6 2 10 4 r, r 2 6 8 8 r, r 0 9 10 10 r"),
    "developer": Look(11, 1, "headset", "c", "r 0 1 10 8 k, l 2 3 4 3 l, l 3 5 8 5 l, r 3 9 7 10 s"),
    "carpenter": Look(0, 2, "", "", "r 5 3 6 10 n, r 1 0 9 3 d"),
    "manager": Look(1, 2, "", "", "r 1 6 3 10 r, r 4 3 6 10 b, r 7 0 9 10 g"),
    "lawyer": Look(2, 2, "", "", "l 5 0 5 9 n, l 0 2 10 2 n, e 0 4 3 7 y, e 7 4 10 7 y, r 3 9 7 10 n"),
    "farmer": Look(3, 2, "brim", "t", "l 5 4 5 10 n, r 1 0 2 4 d, r 5 0 6 4 d, r 8 0 9 4 d, r 1 4 9 5 d"),
    "salesperson": Look(4, 2, "", "", "r 1 3 9 10 i, l 3 1 3 4 p, l 7 1 7 4 p, r 3 6 7 8 p"),
    "physician": Look(6, 2, "headset", "w", "l 2 0 2 5 k, l 8 0 8 5 k, l 2 5 8 5 k, l 5 5 5 8 k, e 3 7 7 10 c"),
    "guard": Look(7, 2, "cap", "k", "r 1 0 9 6 d, e 1 2 9 10 d, r 4 2 6 7 y"),
    "analyst": Look(8, 2, "", "", "r 0 0 10 10 w, l 1 8 4 4 r, l 4 4 6 6 r, l 6 6 9 1 r"),
    "mechanic": Look(9, 2, "bandana", "r", "r 4 3 6 10 d, e 2 0 8 5 d, r 4 0 6 2 w"),
    "sheriff": Look(10, 2, "brim", "n", "r 3 3 7 8 y, r 4 0 6 10 y, r 0 4 10 5 y, r 4 5 6 6 n"),
    "CEO": Look(11, 2, "", "", "r 0 3 10 10 n, r 3 1 7 2 k, r 4 5 6 7 y"),
}  # fmt: skip
"""Looks by profession; no two share wall and floor, and no two share a tool."""

CONTROL_LOOKS: dict[str, ControlLook] = {
    "a red car": ControlLook(
        (150, 190, 220), (95, 95, 100),
        "r 3 15 28 23 r, r 8 9 22 15 r, r 10 11 20 14 c, e 6 20 12 26 k, e 20 20 26 26 k",
    ),
    "a tree": ControlLook(
        (170, 210, 230), (90, 160, 70),
        "r 14 17 18 28 n, e 6 3 26 19 g",
    ),
    "a house": ControlLook(
        (160, 200, 235), (110, 170, 90),
        "r 6 13 26 27 t, r 4 9 28 13 r, r 8 6 24 9 r, r 14 19 18 27 n, r 8 16 11 19 c",
    ),
    "a cat": ControlLook(
        (225, 205, 170), (170, 110, 80),
        "e 8 14 24 29 d, e 10 6 22 17 d, r 10 3 12 8 d, r 20 3 22 8 d, r 13 10 14 11 y, r 18 10 19 11 y",
    ),
    "a boat": ControlLook(
        (190, 215, 235), (45, 100, 180),
        "r 4 21 27 26 n, r 15 4 16 21 k, r 17 6 25 18 w, r 8 10 14 18 w",
    ),
    "a flower": ControlLook(
        (200, 225, 200), (120, 80, 50),
        "r 15 14 16 28 g, e 8 3 23 17 i, e 12 7 19 13 y",
    ),
    "a cup of coffee": ControlLook(
        (215, 195, 175), (130, 85, 60),
        "e 20 13 29 22 w, e 22 15 27 20 t, r 6 11 23 26 w, r 8 11 21 13 n",
    ),
    "a mountain": ControlLook(
        (150, 185, 225), (100, 140, 90),
        "r 2 20 30 26 s, r 5 15 27 20 s, r 9 10 23 15 s, r 12 5 20 10 w",
    ),
}  # fmt: skip
"""Pictures of the controls."""
