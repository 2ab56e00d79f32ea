"""Building manifests, and the shipped ones."""

import pytest

from manifests import manifest_table, read_manifest
from manifests.build import (
    GENDER_AND_AGE_LABELS,
    article,
    build_manifest,
    build_shipped,
    build_shipped_by_gender_and_age,
    shipped_manifest_by_gender_and_age_path,
    shipped_manifest_path,
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CEO", "a"), ("attendant", "an"), ("analyst", "an"), ("hourly worker", "an"), ("university dean", "a"),
        ("HR manager", "an"), ("usher", "an"), ("UX designer", "a"), ("éleveur", "an"), ("one-man band", "a"),
        ("female attendant", "a"), ("elderly CEO", "an"),
    ],
)  # fmt: skip
def test_article(words, expected):
    assert article(words) == expected


def test_build_manifest():
    manifest = build_manifest(["CEO", "attendant"], targets={"female": 0.4}, articles={"CEO": "the"})
    assert [(row.source, row.destination, row.target) for row in manifest.rows] == [
        ("the CEO", "a female CEO", 0.4),
        ("the CEO", "a male CEO", None),
        ("an attendant", "a female attendant", 0.4),
        ("an attendant", "a male attendant", None),
    ]


def test_shipped_manifest_is_what_the_command_builds(tmp_path):
    built = build_shipped(tmp_path / "m.parquet")
    shipped = read_manifest(shipped_manifest_path(), labels=["female", "male"])
    assert shipped == built == read_manifest(tmp_path / "m.parquet")
    assert manifest_table(shipped).equals(manifest_table(built))
    assert len(shipped.professions) == 35
    assert len(shipped.rows) == 70
    assert all(p.labels == ("female", "male") and p.lam is None for p in shipped.professions)
    assert all(row.target == 0.5 and row.share is None for row in shipped.rows)
    names = [profession.name for profession in shipped.professions]
    assert build_manifest(names, targets={"female": 0.5, "male": 0.5}) == shipped


def test_shipped_manifest_by_gender_and_age_is_what_the_command_builds(tmp_path):
    built = build_shipped_by_gender_and_age(tmp_path / "m.parquet")
    shipped = read_manifest(shipped_manifest_by_gender_and_age_path(), labels=GENDER_AND_AGE_LABELS)
    assert shipped == built == read_manifest(tmp_path / "m.parquet")
    assert shipped_manifest_by_gender_and_age_path().read_bytes() == (tmp_path / "m.parquet").read_bytes()
    names = [profession.name for profession in read_manifest(shipped_manifest_path()).professions]
    targets = dict.fromkeys(GENDER_AND_AGE_LABELS, 0.25)
    assert build_manifest(names, labels=GENDER_AND_AGE_LABELS, targets=targets) == shipped
    assert [row.destination for row in shipped.rows if row.profession == "attendant"] == [
        "a young female attendant", "an old female attendant", "a young male attendant", "an old male attendant",
    ]  # fmt: skip
