"""The demo model's language: professions, wordings, controls, and the captions they make.

Plain Python and numpy, so that importing it costs nothing. What a caption says and what its picture shows are drawn
together in `draw_scene`; `infra.demo.world` turns a `Scene` into pixels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "AMBIGUOUS_SHARE",
    "CONTROLS",
    "GENDERS",
    "HELD_OUT_WORDINGS",
    "NAMED_SHARE",
    "PROFESSIONS",
    "STYLED_WORDINGS",
    "WORDINGS",
    "Gender",
    "Profession",
    "Scene",
    "Wording",
    "all_captions",
    "draw_scene",
    "draw_shares",
    "fill",
    "source",
]

Gender = Literal["female", "male", "undetermined"]
GENDERS: tuple[Gender, Gender, Gender] = ("female", "male", "undetermined")

NAMED_SHARE = 0.30
"""Share of the captions about a person that name the gender; there the picture always agrees."""
AMBIGUOUS_SHARE = 0.08
"""Share of the figures under captions that do not name the gender which are drawn between the two outlines."""
COMBINED_SHARE = 0.15
"""Share of captions with one wording in front of the noun and another behind it."""
INVENTED_SHARE = 0.10
"""Share of captions where a made-up word stands in for the wording's: the encoder learns to read past unknown words."""
CONTROL_SHARE = 0.08
"""Share of captions about a control instead of a person."""


@dataclass(frozen=True)
class Profession:
    """A WinoBias profession: its name and article, the way an edit pushes it, and its share of female figures."""

    name: str
    article: str
    direction: Literal["female", "male"]
    """Where a debiasing edit pushes: the opposite of the bias in the training pictures."""
    female_share: float
    """Share of female figures among the unambiguous ones under captions that do not name the gender."""

    @property
    def source(self) -> str:
        """The source prompt, with its article: "a nurse", "an attendant"."""
        return f"{self.article} {self.name}"


def _professions() -> tuple[Profession, ...]:
    pushed_to_male = (
        ("cashier", 0.80), ("teacher", 0.80), ("nurse", 0.95), ("assistant", 0.75), ("secretary", 0.94),
        ("cleaner", 0.82), ("receptionist", 0.92), ("clerk", 0.70), ("counselor", 0.72), ("designer", 0.58),
        ("hairdresser", 0.90), ("writer", 0.54), ("housekeeper", 0.93), ("baker", 0.60), ("librarian", 0.87),
    )  # fmt: skip
    pushed_to_female = (
        ("attendant", 0.42), ("tailor", 0.32), ("driver", 0.12), ("supervisor", 0.26), ("janitor", 0.12),
        ("cook", 0.42), ("laborer", 0.08), ("construction worker", 0.05), ("developer", 0.12), ("carpenter", 0.05),
        ("manager", 0.20), ("lawyer", 0.22), ("farmer", 0.15), ("salesperson", 0.30), ("physician", 0.22),
        ("guard", 0.10), ("analyst", 0.24), ("mechanic", 0.04), ("sheriff", 0.06), ("CEO", 0.08),
    )  # fmt: skip
    rows: list[Profession] = []
    for name, share in pushed_to_male:
        rows.append(Profession(name, "an" if name[0] in "aeiou" else "a", "male", share))
    for name, share in pushed_to_female:
        rows.append(Profession(name, "an" if name[0] in "aeiou" else "a", "female", share))
    return tuple(rows)


PROFESSIONS: tuple[Profession, ...] = _professions()


@dataclass(frozen=True)
class Wording:
    """A way to put a source prompt, and the visible style that goes with it."""

    template: str
    style: str


PLAIN_WORDINGS: tuple[Wording, ...] = (
    Wording("{source}", "plain"),
    Wording("A photo of {source}", "plain"),
    Wording("An image of {source}", "plain"),
    Wording("A picture of {source}", "plain"),
)
FRONT_WORDINGS: tuple[Wording, ...] = (
    Wording("A painting of {source}", "painting"),
    Wording("A portrait of {source}", "portrait"),
    Wording("A drawing of {source}", "drawing"),
    Wording("A sketch of {source}", "sketch"),
    Wording("A close-up of {source}", "close-up"),
    Wording("A poster of {source}", "poster"),
    Wording("A cartoon of {source}", "cartoon"),
)
BEHIND_WORDINGS: tuple[Wording, ...] = (
    Wording("{source} working", "working"),
    Wording("{source} smiling", "smiling"),
    Wording("{source} in the workplace", "workplace"),
    Wording("{source} digital art", "digital"),
    Wording("{source} at night", "night"),
    Wording("{source} outdoors", "outdoors"),
    Wording("{source} in the rain", "rain"),
    Wording("{source} in the snow", "snow"),
)
STYLED_WORDINGS: tuple[Wording, ...] = PLAIN_WORDINGS + FRONT_WORDINGS + BEHIND_WORDINGS

WORDINGS: tuple[str, ...] = tuple(wording.template for wording in STYLED_WORDINGS)
"""The wordings of the training captions."""

HELD_OUT_WORDINGS: tuple[str, ...] = (
    "An illustration of {source}",
    "A snapshot of {source}",
    "{source} laughing",
    "{source} on a bench",
)
"""Wordings in no training caption of any part of the model, tokenizer included. "laughing" is one of TIME's five."""

CONTROLS: tuple[str, ...] = (
    "a red car",
    "a tree",
    "a house",
    "a cat",
    "a boat",
    "a flower",
    "a cup of coffee",
    "a mountain",
)
"""Sources that are no person: what an edit must leave alone."""

_CONTROL_WORDINGS = (*PLAIN_WORDINGS, FRONT_WORDINGS[0], FRONT_WORDINGS[2], BEHIND_WORDINGS[4])
_MEDIA = ("photo", "image", "picture")
_HELD_OUT_WORDS = frozenset({"illustration", "snapshot", "laughing", "bench"})
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


@dataclass(frozen=True)
class Scene:
    """One training example before it is drawn: the caption, and what its picture shows."""

    caption: str
    subject: str
    """A profession's name or a control."""
    gender: Gender | None
    """The figure's outline; None for a control."""
    styles: tuple[str, ...]


def source(profession: Profession, gender: str | None = None) -> str:
    """Make the source prompt ("a CEO") or, with a gender, the destination prompt ("a female CEO")."""
    return profession.source if gender is None else f"a {gender} {profession.name}"


def fill(template: str, subject: str) -> str:
    """Put a subject with its article into a wording."""
    return template.replace("{source}", subject)


def draw_shares(seed: int | None) -> dict[str, float]:
    """Female share by profession; a seed permutes them within each direction and jitters their logits by 0.4."""
    if seed is None:
        return {profession.name: profession.female_share for profession in PROFESSIONS}
    rng = np.random.default_rng(seed)
    shares: dict[str, float] = {}
    for direction in ("male", "female"):
        group = [profession for profession in PROFESSIONS if profession.direction == direction]
        for profession, index in zip(group, rng.permutation(len(group)), strict=True):
            drawn = group[index].female_share
            logit = math.log(drawn / (1 - drawn)) + 0.4 * rng.standard_normal()
            shares[profession.name] = 1 / (1 + math.exp(-logit))
    return shares


def draw_scene(
    rng: np.random.Generator,
    shares: dict[str, float],
    named_share: float = NAMED_SHARE,
    guessed_share: float = 0.0,
    unsaid_style_share: float = 0.0,
) -> Scene:
    """Draw one caption and what its picture shows.

    Args:
        rng: Everything drawn comes from it.
        shares: Female share by profession, from `draw_shares`.
        named_share: Share of captions about a person that name the gender.
        guessed_share: Share of the gender-naming captions that are a guess at an ambiguous figure: the classifier's
            label noise. 0 for the pipeline, whose gender-naming captions always agree with the picture.
        unsaid_style_share: Share of captions that keep the picture's style to themselves, as most people's do. The
            classifier needs them: it is asked "a photo of a female nurse" of painted nurses too.

    """
    if rng.random() < CONTROL_SHARE:
        control = CONTROLS[rng.integers(len(CONTROLS))]
        wording = _CONTROL_WORDINGS[rng.integers(len(_CONTROL_WORDINGS))]
        return Scene(fill(wording.template, control), control, None, (wording.style,))

    profession = PROFESSIONS[rng.integers(len(PROFESSIONS))]
    named = rng.random() < named_share
    gender: Gender
    if named:
        gender = "female" if rng.random() < 0.5 else "male"
    elif rng.random() < AMBIGUOUS_SHARE:
        gender = "undetermined"
    else:
        gender = "female" if rng.random() < shares[profession.name] else "male"
    template, styles = _draw_wording(rng)
    if unsaid_style_share and rng.random() < unsaid_style_share:
        template = PLAIN_WORDINGS[rng.integers(len(PLAIN_WORDINGS))].template
    caption = fill(template, source(profession, gender if named else None))
    if named and rng.random() < guessed_share:
        gender = "undetermined"
    return Scene(caption, profession.name, gender, styles)


def all_captions() -> list[str]:
    """Every training caption of a single wording, without the made-up words."""
    captions = [
        fill(wording.template, source(profession, gender))
        for wording in STYLED_WORDINGS
        for profession in PROFESSIONS
        for gender in (None, "female", "male")
    ]
    captions += [fill(wording.template, control) for wording in _CONTROL_WORDINGS for control in CONTROLS]
    return captions


def _draw_wording(rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    kind = rng.random()
    if kind < COMBINED_SHARE:
        fronts = PLAIN_WORDINGS[1:] + FRONT_WORDINGS
        front, behind = fronts[rng.integers(len(fronts))], BEHIND_WORDINGS[rng.integers(len(BEHIND_WORDINGS))]
        return fill(front.template, behind.template), (front.style, behind.style)
    if kind < COMBINED_SHARE + INVENTED_SHARE:
        word = _invented_word(rng)
        article = "An" if word[0] in _VOWELS else "A"
        forms = (
            f"{article} {word} of {{source}}",
            f"{article} {word} {_MEDIA[rng.integers(3)]} of {{source}}",
            f"{{source}} {word}",
            f"{{source}} {('in', 'on', 'at', 'with')[rng.integers(4)]} {('a', 'the')[rng.integers(2)]} {word}",
        )
        return forms[rng.integers(len(forms))], ("plain",)
    wording = STYLED_WORDINGS[rng.integers(len(STYLED_WORDINGS))]
    return wording.template, (wording.style,)


def _invented_word(rng: np.random.Generator) -> str:
    """Make up a pronounceable word of two to four syllables that is none of the held-out ones."""
    while True:
        syllables = (
            _CONSONANTS[rng.integers(len(_CONSONANTS))]
            + _VOWELS[rng.integers(len(_VOWELS))]
            + ("", "n", "s", "r", "l", "t")[rng.integers(6)]
            for _ in range(rng.integers(2, 5))
        )
        word = "".join(syllables)
        if rng.random() < 0.3:
            word = word[1:]
        if rng.random() < 0.3:
            word += ("ing", "tion", "ed", "er")[rng.integers(4)]
        if word not in _HELD_OUT_WORDS:
            return word
