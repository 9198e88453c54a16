from __future__ import annotations

import pytest

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.network.addresses import (
    EXAMPLE_LISTEN,
    EXAMPLE_PEER,
    dialable,
    is_circuit,
    one_per_peer,
    parse,
    parse_listen,
    parse_peer,
    peer_of,
    port_of,
    transport_of,
    with_peer,
)

RELAY = "12D3KooWQWYCPQTmDgcukyCP2ap3SAe4jqg8YPxnjFiaZYQJd1xZ"
PEER = "12D3KooWDJ5evjXMenXp7JyoNfp7bCRrgNJfGBhwNFrTqkjHSNQr"
CIRCUIT = f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        "1.2.3.4:4001",
        "/ip4/1.2.3.4.5/tcp/1",
        "/ip4/1.2.3.4/tcp/99999",
        "/nonsense/1",
        "/" + "a" * 600,
        "/ip4/1.2.3.4/tcp",
        "/ip4/1.2.3.4/tcp/1/p2p/nobody",
    ],
)
def test_rubbish_is_answered_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="/ip4/203"):
        parse(text)


def test_the_examples_are_right() -> None:
    assert parse_peer(EXAMPLE_PEER) == EXAMPLE_PEER
    assert parse_listen(EXAMPLE_LISTEN) == EXAMPLE_LISTEN


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/1.2.3.4/tcp/4001",
        f"/ip4/0.0.0.0/tcp/4001/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}",
        f"/p2p/{PEER}",
    ],
)
def test_a_peer_address_must_lead_to_a_peer(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_peer(text)


@pytest.mark.parametrize("text", [EXAMPLE_PEER, "/unix/tmp/x", "/ip4/1.2.3.4"])
def test_a_listen_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_parts_of_an_address() -> None:
    assert peer_of(CIRCUIT) == PEER
    assert peer_of("/ip4/1.2.3.4/tcp/4001") is None
    assert peer_of(f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY}/p2p-circuit") is None
    assert transport_of(CIRCUIT) == f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY}/p2p-circuit"
    assert with_peer("/ip4/1.2.3.4/tcp/4001", PEER) == f"/ip4/1.2.3.4/tcp/4001/p2p/{PEER}"
    assert is_circuit(CIRCUIT)
    assert not is_circuit(EXAMPLE_PEER)
    assert port_of("/ip6/::1/udp/9/quic-v1", "udp") == 9
    assert port_of("/ip6/::1/udp/9/quic-v1", "tcp") is None


@pytest.mark.parametrize(
    ("address", "anywhere", "elsewhere"),
    [
        ("/ip4/0.0.0.0/tcp/1", False, False),
        ("/ip6/::/tcp/1", False, False),
        ("/ip4/1.2.3.4/tcp/0", False, False),
        ("/ip4/224.0.0.1/udp/5", False, False),
        ("/ip4/127.0.0.1/tcp/1", True, False),
        ("/ip6/::1/tcp/1", True, False),
        ("/ip4/192.168.0.2/udp/7/quic-v1", True, True),
        ("/dns4/example.org/tcp/443", True, True),
        ("/p2p-circuit", False, False),
        ("", False, False),
        (CIRCUIT, True, True),
    ],
)
def test_dialable(address: str, anywhere: bool, elsewhere: bool) -> None:
    assert dialable(address) is anywhere
    assert dialable(address, loopback=False) is elsewhere


def test_a_relay_is_named_once() -> None:
    first, again = f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}", f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{RELAY}"
    other = f"/ip4/1.2.3.5/tcp/1/p2p/{PEER}"
    assert one_per_peer([first, again, "/ip4/1.2.3.4/tcp/1", other]) == [first, other]
