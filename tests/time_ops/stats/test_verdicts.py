"""Verdicts, and the images that would decide."""

from time_ops.stats.estimates import Estimate
from time_ops.stats.intervals import rate
from time_ops.stats.verdicts import Verdict, combine, gate_lower, gate_upper, n_to_decide


def test_verdicts():
    def of(low, high):
        return Estimate((low + high) / 2, low, high, 0.0, 100, 0.0)

    assert [gate_upper(of(*one), 0.2) for one in ((0.1, 0.2), (0.1, 0.3), (0.21, 0.3))] == [
        Verdict.PASS,
        Verdict.INCONCLUSIVE,
        Verdict.FAIL,
    ]
    assert [gate_lower(of(*one), 0.2) for one in ((0.2, 0.3), (0.1, 0.3), (0.1, 0.19))] == [
        Verdict.PASS,
        Verdict.INCONCLUSIVE,
        Verdict.FAIL,
    ]
    assert gate_lower(rate(0, 0), 0.9) is Verdict.INCONCLUSIVE
    assert combine([Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE]) == "fail"
    assert combine([Verdict.PASS, Verdict.INCONCLUSIVE]) == "inconclusive"
    assert combine([Verdict.PASS]) == "pass"
    assert combine([]) == "inconclusive"


def test_n_to_decide():
    assert n_to_decide(Estimate(0.1, 0.0, 0.3, 0.0, 100, 0.1), 0.2) == 400
    assert n_to_decide(Estimate(0.3, 0.1, 0.4, 0.0, 100, 0.3), 0.2) == 400
    assert n_to_decide(Estimate(0.1, 0.0, 0.15, 0.0, 100, 0.1), 0.2) == 100
    assert n_to_decide(Estimate(0.2, 0.0, 0.3, 0.0, 100, 0.2), 0.2) is None
    assert n_to_decide(rate(0, 0), 0.9) is None
