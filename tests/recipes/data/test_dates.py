"""Dates in many languages: which day is meant follows from the text alone."""

import datetime

import pytest

pytest.importorskip("babel")

from recipes.data import dates


def test_every_way_of_writing_a_day_names_that_day_alone():
    from babel.dates import format_date

    found = {}
    for number in range(0, dates.DAYS, 7):
        day = dates.FIRST + datetime.timedelta(number)
        for locale in dates.LOCALES:
            for form in dates.FORMATS:
                text = format_date(day, format=form, locale=locale)
                assert found.setdefault(text, day) == day, (text, locale)
    assert len(found) > 30_000


def test_days_are_drawn_once_in_all_languages():
    sources, targets = dates.draw(3000, seed=1)
    assert len(set(targets)) == len(sources) == 3000
    days = [datetime.date.fromisoformat(target) for target in targets]
    assert min(days) >= datetime.date(2000, 1, 1)
    assert max(days) <= datetime.date(2029, 12, 31)
    years = {str(day.year) in source for day, source in zip(days, sources, strict=True)}
    assert years == {True}
    assert {day.year for day in days} == set(range(2000, 2030))
    for word in ("March", "März", "mars", "марта", "月", "월"):
        assert any(word in source for source in sources)
    assert dates.draw(3000, seed=1) == (sources, targets)
    assert dates.draw(3000, seed=2)[1] != targets


def test_the_last_day_can_be_drawn():
    assert max(dates.draw(dates.DAYS, seed=0)[1]) == "2029-12-31"
