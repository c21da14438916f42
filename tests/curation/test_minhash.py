"""MinHash finds as many pairs as theory says it does, and clusters are what a search over all pairs finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserl.curation.minhash import Bands, Clusters, band_keys, bands_for, buckets, jaccard, signatures
from fuserl.curation.shingles import Runs, mixed
from fuserl.errors import FuserlError


def sets_of(*sets: np.ndarray) -> Runs:
    return Runs(np.concatenate(sets), np.concatenate([[0], np.cumsum([len(one) for one in sets])]))


def pairs_of(similarity: float, count: int, size: int = 90, seed: int = 0) -> Runs:
    """Pairs of sets with about this Jaccard similarity: 2 s / (1 + s) of the members of each are shared."""
    shared = round(2 * similarity / (1 + similarity) * size)
    numbers = mixed(np.arange(seed * 10**8, seed * 10**8 + count * 2 * size, dtype=np.uint64)).reshape(count, 2 * size)
    found = []
    for row in numbers:
        found += [row[:size], np.concatenate([row[:shared], row[size : 2 * size - shared]])]
    return sets_of(*found)


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 1.0])
def test_places_of_a_signature_agree_as_often_as_the_sets_are_similar(similarity):
    sets = pairs_of(similarity, 300)
    exact = jaccard(*(np.sort(sets.hashes[sets.starts[n] : sets.starts[n + 1]]) for n in (0, 1)))
    assert exact == pytest.approx(similarity, abs=0.02)
    signature = signatures(sets, 128)
    agree = (signature[:, 0::2] == signature[:, 1::2]).mean()
    assert agree == pytest.approx(exact, abs=0.02)  # of 38,400 places, whose standard error is below 0.003


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("cut", [Bands(18, 7), Bands(8, 4), Bands(32, 2)], ids=str)
def test_pairs_meet_in_a_band_as_often_as_theory_says(similarity, cut):
    sets = pairs_of(similarity, 600, seed=3)
    exact = jaccard(*(np.sort(sets.hashes[sets.starts[n] : sets.starts[n + 1]]) for n in (0, 1)))
    keys = band_keys(sets, cut)
    met = (keys[0::2] == keys[1::2]).any(axis=1).mean()
    assert met == pytest.approx(cut.chance(exact), abs=0.06)


def test_sets_that_share_nothing_do_not_meet():
    keys = band_keys(pairs_of(0.0, 500), Bands(18, 7))
    assert len(np.unique(keys)) == keys.size


def test_signatures_do_not_depend_on_company_order_or_repetition():
    sets = pairs_of(0.5, 300)  # more than are computed together
    keys = band_keys(sets, Bands(6, 3))
    for place in (0, 7, 255, 256, 599):
        members = sets.hashes[sets.starts[place] : sets.starts[place + 1]]
        again = np.concatenate([members[::-1], members[:5]])
        np.testing.assert_array_equal(band_keys(sets_of(again), Bands(6, 3))[0], keys[place])


@given(st.floats(0.05, 1.0), st.integers(1, 256), st.floats(0.05, 0.999))
def test_bands_find_what_was_asked_for_with_as_few_candidates_as_possible(threshold, num_perm, recall):
    possible = [Bands(num_perm // rows, rows) for rows in range(1, num_perm + 1)]
    good = [bands for bands in possible if bands.chance(threshold) >= recall]
    if good:
        cut = bands_for(threshold, num_perm, recall)
        assert cut in good
        assert cut.rows == max(bands.rows for bands in good)
        assert cut.bands * cut.rows <= num_perm
    else:
        with pytest.raises(FuserlError, match="permutations find"):
            bands_for(threshold, num_perm, recall)


@given(st.lists(st.integers(0, 5), max_size=30), st.randoms())
def test_buckets_hold_all_that_share_a_key_and_nothing_else(keys, random):
    order = list(range(len(keys)))
    random.shuffle(order)
    order = order[: len(keys) * 3 // 4]
    found = sorted(map(tuple, buckets(np.array(keys, np.uint64), np.array(order, np.int64))))
    by_key = {key: tuple(place for place in order if keys[place] == key) for key in keys}
    assert found == sorted(bucket for bucket in by_key.values() if len(bucket) > 1)


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_jaccard_is_that_of_sets(one, other):
    arrays = [np.array(sorted(each), np.uint64) for each in (one, other)]
    assert jaccard(*arrays) == len(one & other) / max(len(one | other), 1)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_clusters_are_what_links_connect(case):
    count, links = case
    clusters = Clusters(count)
    for one, other in links:
        clusters.join(one, other)
    label = list(range(count))
    for _ in range(count):  # the smallest label spreads along links until nothing changes
        for one, other in links:
            label[one] = label[other] = min(label[one], label[other])
    assert [clusters.root(member) for member in range(count)] == label
