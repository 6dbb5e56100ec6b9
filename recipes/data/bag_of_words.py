"""What the words of a text alone tell of its class."""

from typing import Any

import numpy as np

from recipes.data.labelled_texts import TextData
from recipes.harness.metrics import cross_entropy_and_accuracy


def bag_of_words(
    data: TextData, fit: np.ndarray, validate: np.ndarray, *, on: str = "test"
) -> dict[str, float]:
    """Logistic regression on tf-idf of words and pairs of words.

    Args:
        data: The texts.
        fit: Indices of the training texts.
        validate: Indices of the texts by which the regularisation is chosen.
        on: Where it is tested: "test", or "validation".

    Returns:
        Mean cross-entropy as `loss`, and `accuracy`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    x = vectorizer.fit_transform([data.texts[i] for i in fit])
    x_validate = vectorizer.transform([data.texts[i] for i in validate])
    x_test = vectorizer.transform(data.test_texts)

    def scores(model: Any, x: Any, y: np.ndarray) -> dict[str, float]:
        logits = np.full((len(y), len(data.classes)), -30.0)  # of classes that were not seen
        logits[:, model.classes_] = model.predict_log_proba(x)
        return cross_entropy_and_accuracy(np.maximum(logits, -30.0), y)

    models = [
        LogisticRegression(C=strength, max_iter=1000).fit(x, data.labels[fit])
        for strength in (1.0, 10.0, 100.0, 1000.0)
    ]
    found = [scores(model, x_validate, data.labels[validate]) for model in models]
    best = min(range(len(models)), key=lambda i: found[i]["loss"])
    return found[best] if on == "validation" else scores(models[best], x_test, data.test_labels)
