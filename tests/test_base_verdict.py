"""What several paired tests say together: better only than all, worse than any, and by name."""

from typing import Any

import pytest

from tasks.base.verdict import capital, standing

BETTER, WORSE, UNCLEAR = "improved", "worse", "no evidence"


@pytest.mark.parametrize(
    ("said", "verdict", "against"),
    [
        ({"probe": BETTER, "tfidf": BETTER, "baseline": BETTER}, "better than every reference", "probe"),
        ({"tfidf": UNCLEAR, "probe": BETTER, "baseline": BETTER}, "not shown better than TF-IDF", "tfidf"),
        # the strongest is beaten and a weaker one is not: it has other rows right
        ({"tfidf": BETTER, "probe": UNCLEAR, "baseline": BETTER}, "not shown better than linear probe", "probe"),
        ({"champion": UNCLEAR, "tfidf": UNCLEAR}, "not shown better than champion", "champion"),
        ({"probe": WORSE, "tfidf": WORSE, "baseline": BETTER}, "worse than linear probe", "probe"),
        ({"champion": UNCLEAR, "tfidf": WORSE}, "worse than TF-IDF", "tfidf"),
        ({"majority": UNCLEAR, "baseline": UNCLEAR}, "not shown better than majority class", "majority"),
        ({"baseline": BETTER}, "better than every reference", "baseline"),
        ({"baseline": WORSE}, "worse than foundation model", "baseline"),
    ],
)
def test_verdict_is_about_the_strongest_reference_that_is_not_beaten(
    said: dict[str, Any], verdict: str, against: str
) -> None:
    assert standing(list(said.items())) == (verdict, against)


def test_first_letter_alone_becomes_a_capital() -> None:
    assert capital("not shown better than TF-IDF") == "Not shown better than TF-IDF"
    assert capital("") == ""
