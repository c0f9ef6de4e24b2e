"""Sentences about a case that programs read too."""

from cache_schema.findings import (
    repairs_in,
    say_background,
    say_partial,
    say_repaired,
    spoils_picture,
)


def test_what_was_mended_is_picked_out_of_other_findings():
    findings = ("no ET", say_repaired("origin (0, 0, 0) of seg taken as (0, 239, 0)"))
    assert repairs_in(findings) == ("origin (0, 0, 0) of seg taken as (0, 239, 0)",)


def test_a_background_and_a_part_of_a_head_spoil_a_picture():
    assert spoils_picture(say_background("t1", 1.0))
    assert spoils_picture(say_partial("flair", 0.66))
    assert not any(map(spoils_picture, ("no ET", "3 label voxels outside the brain")))
    assert not spoils_picture(say_repaired("origin (0, 0, 0) of seg taken as (0, 239, 0)"))


def test_shares_are_said_as_per_cent():
    assert say_partial("flair", 0.664) == (
        "flair covers 66% of the head that the other modalities show"
    )
    assert "100% of its voxels count as brain" in say_background("t1", 1.0)
