from messages import end, metrics, ranks, record_of, start

from daskdl.tracking.card import html_card

FAST = {"forward": 0.01, "all-reduce": 0.05}
SLOW = {"data": 0.05, "forward": 0.01}


def test_a_run_that_has_ended_tells_what_limited_it_in_one_line():
    record = record_of(start("r"), metrics("r", [1, {"train_loss": 1.0}], ranks=ranks(FAST, SLOW)))
    assert "straggler" not in html_card(record), "the page tells it while it runs"
    record.apply(end("r"))
    assert html_card(record).count("Rank 1 is the straggler: 83 % of its step is waiting for data.") == 1


def test_signals_stand_below_what_tells_how_good_the_model_is():
    values = {"learning_rate": 0.1, "grad_norm": 2.0, "train_loss": 1.0}
    card = html_card(record_of(start("r"), metrics("r", [1, values])))
    assert card.index("train_loss") < card.index("grad_norm")
    assert card.index("train_loss") < card.index("learning_rate")
