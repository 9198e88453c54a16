"""Whatever remotes say, our coordinate stays valid."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.coordinates import checked, initial, predicted_rtt_s, update
from ravnest_p2p.core.errors import RecordFormatError
from ravnest_p2p.core.types import Coordinate

remotes = st.builds(
    lambda x, y, height, error: Coordinate((x, y), height, error),
    st.floats(-11, 11) | st.floats(),
    st.floats(-11, 11),
    st.floats(0, 6) | st.floats(),
    st.floats(0, 2) | st.floats(),
)


@given(st.lists(st.tuples(remotes, st.floats(allow_nan=False)), max_size=30))
def test_hostile_remotes_never_spoil_our_coordinate(heard: list[tuple[Coordinate, float]]) -> None:
    own = initial()
    for remote, rtt_s in heard:
        try:
            own = update(own, remote, rtt_s, tie="ab")
        except RecordFormatError:
            continue
        assert checked(own) == own
        assert 0 <= predicted_rtt_s(own, remote) < 100
