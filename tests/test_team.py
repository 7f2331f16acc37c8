"""How many threads the team has, and who chooses."""

from fastbp.kernels.cpu import team


def test_pace_tries_both_and_keeps_the_faster():
    pace, costs, chosen = team.Pace(), {4: 3.0, 1: 2.0}, []
    for _ in range(10):
        threads = pace.choose(4)
        chosen.append(threads)
        pace.record(threads, costs[threads])
    assert chosen == [4] + [1] * 9


def test_pace_tries_again_when_cores_have_come_back():
    pace, chosen = team.Pace(), []
    for call in range(2 * pace.CALLS):
        threads = pace.choose(2)
        chosen.append(threads)
        pace.record(threads, {2: 1.0 if call > pace.CALLS // 2 else 3.0, 1: 2.0}[threads])
    assert chosen[2 : pace.CALLS - 1] == [1] * (pace.CALLS - 3)
    assert chosen[pace.CALLS + 1 :] == [2] * (pace.CALLS - 1)


def test_every_member_is_called_with_its_number():
    called = []
    assert team.run(called.append, 3)
    assert sorted(called) == [0, 1, 2]


def test_a_busy_team_calls_nothing():
    inner = []
    assert team.run(lambda thread: inner.append(team.run(inner.append, 2)) if thread == 0 else None, 2)
    assert inner == [False]
