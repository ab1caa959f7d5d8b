from iec.evaluation.bootstrap import Estimate
from iec.experiments.spread import difference_spread, kernel_spread, signed_percent, significant_spread, spread


def test_a_figure_stands_before_its_interval():
    assert spread(Estimate(28.25, 28.11, 28.39), 1, 1) == "28.2 [28.1, 28.4]"
    assert kernel_spread(Estimate(0.00372, 0.00301, 0.00449)) == "3.7 [3.0, 4.5]"
    assert significant_spread(Estimate(0.0012345, 0.000987, 1.5)) == "0.00123 [0.000987, 1.5]"


def test_a_paired_difference_shows_on_which_side_of_nothing_its_interval_ends():
    assert difference_spread(Estimate(-0.00006, -0.00011, -0.00001)) == "-0.06 [-0.11, -0.01]"
    assert difference_spread(Estimate(-0.00003, -0.00006, -0.000001)) == "-0.03 [-0.06, -0.00]"
    assert difference_spread(Estimate(-0.00003, -0.00006, 0.000001)) == "-0.03 [-0.06, 0.00]"


def test_what_rounds_to_nothing_has_no_minus():
    assert spread(Estimate(-0.04, -0.06, 0.01), 1, 1) == "0.0 [-0.1, 0.0]"
    assert signed_percent(-0.3) == "+0"
    assert [signed_percent(5.4), signed_percent(-12.6), signed_percent(-0.04, 1)] == ["+5", "-13", "+0.0"]
