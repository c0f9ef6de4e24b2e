"""The words on disk: other people's shards are read by them, so they may not change."""

import numpy as np

from cache_schema.vocabulary import LABELS, MODALITIES, REGIONS


def test_modalities_are_stored_in_the_order_that_readers_rely_on():
    assert MODALITIES == ("t1", "t1ce", "t2", "flair")


def test_et_is_label_4_and_not_the_3_of_later_years():
    assert LABELS == {"NEC": 1, "ED": 2, "ET": 4}


def test_regions_are_nested_unions_of_labels():
    label = np.array([0, 1, 2, 4])
    et, tc, wt = (np.isin(label, REGIONS[name]).tolist() for name in ("ET", "TC", "WT"))
    assert et == [False, False, False, True]
    assert tc == [False, True, False, True]  # oedema is no core
    assert wt == [False, True, True, True]
