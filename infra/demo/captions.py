"""The demo model's language: professions, wordings, controls, and the captions they make.

Plain Python and numpy, so that importing it costs nothing. What a caption says and what its picture shows are drawn
together in `draw_scene`; `infra.demo.world` turns a `Scene` into pixels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "AGES",
    "AMBIGUOUS_SHARE",
    "CONTROLS",
    "GENDERS",
    "HELD_OUT_WORDINGS",
    "NAMED_SHARE",
    "PROFESSIONS",
    "STYLED_WORDINGS",
    "WORDINGS",
    "Age",
    "Gender",
    "Profession",
    "Scene",
    "Shares",
    "Wording",
    "all_captions",
    "draw_scene",
    "draw_shares",
    "fill",
    "source",
]

Gender = Literal["female", "male", "undetermined"]
GENDERS: tuple[Gender, Gender, Gender] = ("female", "male", "undetermined")
Age = Literal["young", "old"]
AGES: tuple[Age, Age] = ("young", "old")

NAMED_SHARE = 0.42
"""Share of the captions about a person that name gender, age or both; there the picture always agrees."""
_NAMED_KINDS = (("gender", 0.17), ("age", 0.10), ("both", 0.15))
"""What those captions name, as shares of the UNet's captions about a person."""
_NAMED_ODDS = tuple(share / NAMED_SHARE for _, share in _NAMED_KINDS)
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
    """A WinoBias profession: name and article, the way an edit by gender pushes it, its female and its old share."""

    name: str
    article: str
    direction: Literal["female", "male"]
    """Where a debiasing edit pushes: the opposite of the bias in the training pictures."""
    female_share: float
    """Share of female figures among the unambiguous ones under captions that do not name the gender."""
    old_share: float
    """Share of old figures under captions that do not name the age; independent of the gender."""

    @property
    def source(self) -> str:
        """The source prompt, with its article: "a nurse", "an attendant"."""
        return f"{self.article} {self.name}"


def _professions() -> tuple[Profession, ...]:
    pushed_to_male = (
        ("cashier", 0.80, 0.25), ("teacher", 0.80, 0.60), ("nurse", 0.95, 0.34), ("assistant", 0.75, 0.15),
        ("secretary", 0.94, 0.65), ("cleaner", 0.82, 0.72), ("receptionist", 0.92, 0.20), ("clerk", 0.70, 0.55),
        ("counselor", 0.72, 0.75), ("designer", 0.58, 0.18), ("hairdresser", 0.90, 0.28), ("writer", 0.54, 0.70),
        ("housekeeper", 0.93, 0.78), ("baker", 0.60, 0.40), ("librarian", 0.87, 0.83),
    )  # fmt: skip
    pushed_to_female = (
        ("attendant", 0.42, 0.22), ("tailor", 0.32, 0.80), ("driver", 0.12, 0.58), ("supervisor", 0.26, 0.68),
        ("janitor", 0.12, 0.82), ("cook", 0.42, 0.30), ("laborer", 0.08, 0.24), ("construction worker", 0.05, 0.19),
        ("developer", 0.12, 0.10), ("carpenter", 0.05, 0.62), ("manager", 0.20, 0.66), ("lawyer", 0.22, 0.74),
        ("farmer", 0.15, 0.84), ("salesperson", 0.30, 0.26), ("physician", 0.22, 0.73), ("guard", 0.10, 0.36),
        ("analyst", 0.24, 0.14), ("mechanic", 0.04, 0.45), ("sheriff", 0.06, 0.76), ("CEO", 0.08, 0.85),
    )  # fmt: skip
    rows: list[Profession] = []
    for name, female, old in pushed_to_male:
        rows.append(Profession(name, "an" if name[0] in "aeiou" else "a", "male", female, old))
    for name, female, old in pushed_to_female:
        rows.append(Profession(name, "an" if name[0] in "aeiou" else "a", "female", female, old))
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
    age: Age | None
    """Old figures have white or grey hair and a scarf; None for a control."""
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """The bias of training captions: shares by profession under captions that leave the attribute open."""

    female: dict[str, float]
    old: dict[str, float]


def source(profession: Profession, gender: str | None = None, age: str | None = None) -> str:
    """Make the source prompt ("a CEO") or, with a gender or an age, a destination prompt ("an old female CEO")."""
    if gender is None and age is None:
        return profession.source
    article = "an" if age == "old" else "a"
    return " ".join(word for word in (article, age, gender, profession.name) if word)


def fill(template: str, subject: str) -> str:
    """Put a subject with its article into a wording."""
    return template.replace("{source}", subject)


def draw_shares(seed: int | None) -> Shares:
    """Shares by profession; a seed permutes them within each direction of a bias and jitters their logits by 0.4."""
    female = {profession.name: profession.female_share for profession in PROFESSIONS}
    old = {profession.name: profession.old_share for profession in PROFESSIONS}
    if seed is None:
        return Shares(female, old)
    rng = np.random.default_rng(seed)
    return Shares(_redraw(female, rng), _redraw(old, rng))


def _redraw(shares: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    drawn: dict[str, float] = {}
    for above in (True, False):
        group = [name for name, share in shares.items() if (share > 0.5) == above]
        for name, index in zip(group, rng.permutation(len(group)), strict=True):
            share = shares[group[index]]
            logit = math.log(share / (1 - share)) + 0.4 * rng.standard_normal()
            drawn[name] = 1 / (1 + math.exp(-logit))
    return drawn


def draw_scene(
    rng: np.random.Generator,
    shares: Shares,
    named_share: float = NAMED_SHARE,
    guessed_share: float = 0.0,
    unsaid_style_share: float = 0.0,
) -> Scene:
    """Draw one caption and what its picture shows.

    Args:
        rng: everything drawn comes from it.
        shares: of female and of old figures, by profession, from `draw_shares`.
        named_share: share of captions about a person that name gender, age or both.
        guessed_share: share of the gender-naming captions that are a guess at an ambiguous figure: the classifier's
            label noise. 0 for the pipeline, whose captions always agree with the picture.
        unsaid_style_share: share of captions that keep the picture's style to themselves, as most people's do. The
            classifier needs them: it is asked "a photo of a female nurse" of painted nurses too.
    """
    if rng.random() < CONTROL_SHARE:
        control = CONTROLS[rng.integers(len(CONTROLS))]
        wording = _CONTROL_WORDINGS[rng.integers(len(_CONTROL_WORDINGS))]
        return Scene(fill(wording.template, control), control, None, None, (wording.style,))

    profession = PROFESSIONS[rng.integers(len(PROFESSIONS))]
    says_gender, says_age = _draw_named(rng, named_share)
    gender: Gender
    if says_gender:
        gender = "female" if rng.random() < 0.5 else "male"
    elif rng.random() < AMBIGUOUS_SHARE:
        gender = "undetermined"
    else:
        gender = "female" if rng.random() < shares.female[profession.name] else "male"
    age: Age = "old" if rng.random() < (0.5 if says_age else shares.old[profession.name]) else "young"
    template, styles = _draw_wording(rng)
    if unsaid_style_share and rng.random() < unsaid_style_share:
        template = PLAIN_WORDINGS[rng.integers(len(PLAIN_WORDINGS))].template
    caption = fill(template, source(profession, gender if says_gender else None, age if says_age else None))
    if says_gender and rng.random() < guessed_share:
        gender = "undetermined"
    return Scene(caption, profession.name, gender, age, styles)


def all_captions() -> list[str]:
    """Every training caption of a single wording, without the made-up words."""
    captions = [
        fill(wording.template, source(profession, gender, age))
        for wording in STYLED_WORDINGS
        for profession in PROFESSIONS
        for gender in (None, "female", "male")
        for age in (None, *AGES)
    ]
    captions += [fill(wording.template, control) for wording in _CONTROL_WORDINGS for control in CONTROLS]
    return captions


def _draw_named(rng: np.random.Generator, named_share: float) -> tuple[bool, bool]:
    """Draw whether a caption names the gender, and whether the age."""
    if rng.random() >= named_share:
        return False, False
    kind = rng.choice([name for name, _ in _NAMED_KINDS], p=_NAMED_ODDS)
    return kind != "age", kind != "gender"


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
