import numpy as np
import pytest

from kattn.biases.tables import DistanceTable, Table, look_up
from kattn.spans import Span
from tests.biases.battery import BY_QUERY, TABLE, S, T
from tests.compute import run


def test_numbers_of_these_queries_are_left():
    assert Table(TABLE).at(Span(2, 3)) == Table(TABLE)
    assert not Table(TABLE).is_by_query
    assert Table(BY_QUERY).is_by_query
    assert Table(BY_QUERY).at(Span(2, 3)) == Table(BY_QUERY[:, :, 2:5])


def test_numbers_are_looked_up():
    index = np.array([[[[0, 8], [3, 3]]]], "int32")
    np.testing.assert_array_equal(run(look_up, TABLE, index), TABLE[None][:, :, index[0, 0]])
    found = run(look_up, BY_QUERY[:, :, :2], index[..., :1])
    np.testing.assert_array_equal(found[:, :, 0, 0], BY_QUERY[:, :, 0, 0])
    np.testing.assert_array_equal(found[:, :, 1, 0], BY_QUERY[:, :, 1, 3])


def test_a_distance_table_must_say_where_a_distance_lies():
    assert DistanceTable(TABLE).is_stationary
    with pytest.raises(NotImplementedError):
        DistanceTable(TABLE)[0:1, 0:1]


@pytest.mark.parametrize("values", [TABLE, BY_QUERY], ids=["for all", "by query"])
def test_heads(values):
    with pytest.raises(ValueError, match=r"`values` of a bias must have one row.*N=2.*values.sh"):
        Table(values).check(2, 2, T, S)
