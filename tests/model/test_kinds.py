"""Where features lie, whatever the kind: found again in a row of a cache, and named."""

import pytest

from fl_i2moe.model.kind_text import TextPlaces
from fl_i2moe.model.kinds import KINDS, places_in

ROW = {
    "x": "Two words",
    "x_special_mask": [True, False, False],
    "x_offsets": [[0, 0], [0, 3], [4, 9]],
}


def test_a_declared_kind_is_believed_before_the_columns():
    assert type(places_in(ROW, "x")) is TextPlaces
    assert type(places_in(ROW, "x", {"kind": "text"})) is TextPlaces
    assert type(places_in(ROW, "x", {"kind": "array"})) is KINDS["array"].places


def test_no_two_kinds_share_an_annotation():
    suffixes = [suffix for kind in KINDS.values() for suffix in kind.annotation_types]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize("kind", list(KINDS))
def test_features_without_their_value_have_a_number(kind):
    places = KINDS[kind].places(num_features=2, special=[])
    assert [places.name_of(0), places.name_of(1)] == ["feature 0", "feature 1"]
    assert places.place_of(0) == {}


def test_tokens_without_their_text_have_a_number():
    places = places_in({**ROW, "x": None}, "x", {"kind": "text"})
    assert places.name_of(1) == "feature 1"
    assert places.place_of(1) == {}
