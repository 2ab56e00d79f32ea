"""Build manifests: from a list of professions, from a CSV, and the two that are shipped.

python -m manifests.build      # writes the Parquet files in manifests/data from the CSVs beside them
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from manifests.read import read_manifest
from manifests.schema import Manifest, ManifestRow
from manifests.write import manifest_bytes, write_manifest

__all__ = [
    "GENDER_AND_AGE_LABELS",
    "article",
    "build_manifest",
    "build_shipped",
    "build_shipped_by_gender_and_age",
    "shipped_manifest_by_gender_and_age_path",
    "shipped_manifest_path",
]

GENDER_AND_AGE_LABELS = ("young female", "old female", "young male", "old male")
"""Labels of the shipped manifest by gender and age."""

_DATA = Path(__file__).parent / "data"


@cache
def _english() -> Any:
    import inflect  # not above: it takes seconds, which every command would spend

    english = inflect.engine()
    for pattern in ("usher.*", "s[eqv][orm] .*"):  # an usher; initials read letter by letter: an SEO, SQR, SVM ...
        english.defan(pattern)
    english.defa("u[xi] .*")  # a UX designer, a UI designer
    return english


def article(words: str) -> str:
    """The English indefinite article, "a" or "an", for the sound that `words` begin with.

    As `inflect` has it, accents set aside: a CEO, an attendant, an hourly worker, a university dean, an HR manager.
    Where it is wrong for a profession, give `build_manifest` the article.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", words) if not unicodedata.combining(c))
    return str(_english().a(plain)).split(" ", 1)[0] if plain.strip() else "a"


def build_manifest(
    professions: Sequence[str],
    *,
    labels: Sequence[str] = ("female", "male"),
    targets: Mapping[str, float] | None = None,
    source: str = "{article} {profession}",
    destination: str = "{article} {label} {profession}",
    articles: Mapping[str, str] | None = None,
) -> Manifest:
    """A manifest with one destination per profession and label.

    Args:
        professions: names as they stand in a prompt, "CEO", "construction worker".
        labels: the attribute's labels; each stands in its destination as it is.
        targets: wanted share per label; labels not in it, or all by default, share equally what is left.
        source: template of the source prompt.
        destination: template of the destination prompts; {article} fits the word behind it.
        articles: article by profession where `article` would be wrong.

    Raises:
        ManifestError: if what comes of it is not a sound manifest.
    """
    rows = []
    for profession in professions:
        own = (articles or {}).get(profession) or article(profession)
        for label in labels:
            rows.append(
                ManifestRow.model_construct(
                    profession=profession,
                    source=source.format(article=own, profession=profession),
                    destination=destination.format(article=article(label), label=label, profession=profession),
                    label=label,
                    target=(targets or {}).get(label),
                )
            )
    return read_manifest(manifest_bytes(Manifest(tuple(rows))), name="built manifest", labels=labels)


def shipped_manifest_path() -> Path:
    """The shipped manifest: the 35 WinoBias professions, both destinations, every target one half."""
    return _DATA / "professions.parquet"


def build_shipped(path: Path | None = None) -> Manifest:
    """Write the shipped manifest from its CSV, to `path` or to where it belongs."""
    manifest = read_manifest(_DATA / "professions.csv", name="professions.csv", labels=("female", "male"))
    write_manifest(manifest, path or shipped_manifest_path())
    return manifest


def shipped_manifest_by_gender_and_age_path() -> Path:
    """The shipped manifest by gender and age: the 35 professions, four destinations each, every target a quarter."""
    return _DATA / "professions_by_gender_and_age.parquet"


def build_shipped_by_gender_and_age(path: Path | None = None) -> Manifest:
    """Write the shipped manifest by gender and age from its CSV, to `path` or to where it belongs."""
    name = "professions_by_gender_and_age.csv"
    manifest = read_manifest(_DATA / name, name=name, labels=GENDER_AND_AGE_LABELS)
    write_manifest(manifest, path or shipped_manifest_by_gender_and_age_path())
    return manifest


if __name__ == "__main__":
    build_shipped()
    build_shipped_by_gender_and_age()
