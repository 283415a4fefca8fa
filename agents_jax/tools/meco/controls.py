"""Controls without a model: classifiers that see the text alone, fitted on the probes' examples.

A probe that does not beat them has shown nothing about the model (`ours`: the paper has none).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from agents_jax.tools.meco import embeddings, texts
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example

Features = Callable[[Sequence[Example]], np.ndarray]


def _logistic(features: np.ndarray, labels: np.ndarray, strength: float = 1.0):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(C=strength, max_iter=300)
    return make_pipeline(StandardScaler(), model).fit(features, labels)


def _tfidf(corpus: Sequence[str], labels: np.ndarray):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = LogisticRegression(C=10.0, solver="liblinear")  # fast on few sparse rows
    return make_pipeline(TfidfVectorizer(sublinear_tf=True), model).fit(corpus, labels)


def _from_features(features: Features, fit: Sequence[Example]):
    labels = np.array([e.needed for e in fit])
    model = _logistic(features(fit), labels)
    return lambda examples: model.decision_function(features(examples))


def _from_vectors(features: Features, fit: Sequence[Example]):
    """Penalised as the probe of hidden states is (`reading.fit_labels`)."""
    labels = np.array([e.needed for e in fit])
    vectors = features(fit)
    model = _logistic(vectors, labels, 1 / vectors.shape[1])
    return lambda examples: model.decision_function(features(examples))


def _from_texts(read: Callable[[Sequence[Example]], list[str]], fit: Sequence[Example]):
    labels = np.array([e.needed for e in fit])
    try:
        model = _tfidf(read(fit), labels)
    except ValueError:  # no words at all to count
        return lambda examples: np.zeros(len(examples))
    return lambda examples: model.decision_function(read(examples))


def _combined(fit: Sequence[Example]):
    """All four: TF-IDF scores come from inside the fit examples, by three-fold prediction; without
    them where a label has fewer than two examples.
    """
    from sklearn.model_selection import cross_val_predict

    labels = np.array([e.needed for e in fit])
    folds = min(3, int(labels.sum()), int((~labels).sum()))
    simple = functools.partial(_features_of, (texts.lengths, texts.overlaps))
    columns, models = [], []
    for read in (texts.query_texts, texts.query_and_tool_texts) if folds > 1 else ():
        try:
            model = _tfidf(read(fit), labels)
            inner = cross_val_predict(
                model, read(fit), labels, cv=folds, method="decision_function"
            )
        except ValueError:
            continue
        columns.append(inner[:, None])
        models.append((read, model))
    model = _logistic(np.hstack([simple(fit), *columns]), labels)

    def score(examples):
        found = [m.decision_function(read(examples))[:, None] for read, m in models]
        return model.decision_function(np.hstack([simple(examples), *found]))

    return score


def _features_of(kinds: Sequence[Features], examples: Sequence[Example]) -> np.ndarray:
    return np.hstack([kind(examples) for kind in kinds])


_CONTROLS = {
    "length": functools.partial(_from_features, texts.lengths),
    "overlap": functools.partial(_from_features, texts.overlaps),
    "tfidf_query": functools.partial(_from_texts, texts.query_texts),
    "tfidf_query_tool": functools.partial(_from_texts, texts.query_and_tool_texts),
    "combined": _combined,
}
CONTROLS = tuple(_CONTROLS)
"""Length of query and tools, word overlap of both, TF-IDF of the words of the query,
of query and tools, and all together. Sets are matched by these."""
_EMBEDDED = {
    "embedding_query": functools.partial(_from_vectors, embeddings.query_vectors),
    "embedding_query_tool": functools.partial(_from_vectors, embeddings.query_and_tool_vectors),
}
EMBEDDING_CONTROLS = tuple(_EMBEDDED)
"""Static embeddings of the query, and of query and tools with their products. Sets are not matched
by these."""


def fit_control(name: str, fit: Sequence[Example]) -> Callable[[Sequence[Example]], np.ndarray]:
    """A function from examples to scores, float64 [num_examples]; higher: a tool is needed.

    Args:
      name: one of CONTROLS or EMBEDDING_CONTROLS. fit: examples of both labels.

    Raises:
      MecoError: an unknown name, or examples of one label. WheelError: embeddings that cannot be
        had.
    """
    makers = _CONTROLS | _EMBEDDED
    if name not in makers:
        raise MecoError(f"control {name!r} is unknown; allowed: {', '.join(makers)}.")
    if len({e.needed for e in fit}) < 2:
        raise MecoError(f"control {name!r}: the {len(fit)} examples to fit on have one label.")
    return makers[name](fit)
