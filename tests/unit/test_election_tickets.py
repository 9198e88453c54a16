"""Tickets: order, bounds, and which views' leaders are followed."""

from ravnest_p2p.core.tickets import TICKET_SPACE, TicketBook


def book(count: int, **settings) -> TicketBook:
    tickets = TicketBook(**settings)
    for number in reversed(range(count)):
        tickets.add(f"p{number}", number)
    return tickets


def test_lowest_first_and_around():
    tickets = book(3)
    assert [tickets.leader(term) for term in range(5)] == ["p0", "p1", "p2", "p0", "p1"]
    assert [tickets.rank(peer) for peer in ("p0", "p2", "stranger")] == [0, 2, None]
    assert TicketBook().leader(0) is None


def test_first_ticket_of_a_peer_counts_and_range_is_checked():
    tickets = book(2)
    assert not tickets.add("p0", 99)
    assert not tickets.add("new", -1)
    assert not tickets.add("new", TICKET_SPACE)
    assert tickets.rank("p0") == 0


def test_equal_tickets_are_ordered_by_peer():
    one, other = TicketBook(), TicketBook()
    for tickets, order in ((one, "ab"), (other, "ba")):
        for peer in order:
            tickets.add(peer, 7)
    assert one.leader(0) == other.leader(0) == "a"


def test_keeps_the_lowest():
    tickets = book(10, limit=4)
    assert len(tickets) == 4
    assert "p4" not in tickets
    assert not tickets.add("high", 1000)
    assert tickets.leader(3) == "p3"


def test_exact_view_entitles_and_far_rank_does_not():
    tickets = book(40)
    assert tickets.tolerance == 10
    for term in range(200):
        assert tickets.entitles(tickets.leader(term), term)
    assert not tickets.entitles("p39", 0)
    assert not tickets.entitles("p0", 20)
    assert not tickets.entitles("stranger", 0)


def test_a_leader_by_half_the_tickets_is_followed_in_early_terms():
    everyone = book(40)
    half = TicketBook()
    for number in range(0, 40, 2):
        half.add(f"p{number}", number)
    for term in range(10):
        assert everyone.entitles(half.leader(term), term)
        assert half.entitles(half.leader(term), term)
