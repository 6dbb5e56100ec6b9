"""Dates as they are written in many languages, by the Unicode locale data that Babel brings."""

import datetime

import numpy as np
from babel.dates import format_date

# Languages that count the years as ISO 8601 does, in the same digits. Each of their ways of writing
# says which number is the day, the month and the year, whatever the language.
LOCALES = (
    *("bg", "ca", "cs", "da", "de", "el", "en", "en_GB", "es", "et", "eu", "fi", "fr", "he", "hr"),
    *("hu", "id", "is", "it", "ja", "ko", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "ru", "sk"),
    *("sl", "sv", "tr", "uk", "vi", "zh"),
)
FORMATS = ("full", "long", "medium")  # with the day of the week; without; abbreviated
FIRST, DAYS = datetime.date(2000, 1, 1), 10_958  # up to 2029


def draw(count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw different days, each written in one of the languages, and as YYYY-MM-DD.

    Args:
        count: Number of days, at most `DAYS`.
        seed: Seed of the days, languages and ways of writing.

    Returns:
        `(sources, targets)`, the texts and the ISO dates.
    """
    rng = np.random.default_rng(seed)
    days = [FIRST + datetime.timedelta(int(day)) for day in rng.permutation(DAYS)[:count]]
    forms, places = (rng.integers(0, len(each), count) for each in (FORMATS, LOCALES))
    sources = tuple(
        format_date(day, format=FORMATS[form], locale=LOCALES[place])
        for day, form, place in zip(days, forms, places, strict=True)
    )
    return sources, tuple(day.isoformat() for day in days)
