"""Classes, numbers and ranks, from gradient boosted trees."""

from __future__ import annotations

from typing import Any

from daskdl.estimators.base import DaskClassifier, DaskRegressor, documented_by
from daskdl.estimators.xgboost.estimator import XGBEstimator


@documented_by(XGBEstimator)
class XGBClassifier(XGBEstimator, DaskClassifier):
    """Classify rows with gradient boosted trees (XGBoost), grown on all workers of a Dask cluster.

    classes_ : array of shape (n_classes,)

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> clf = XGBClassifier(n_estimators=5, verbose=0).fit(X, X.x > 49)
    >>> clf.predict(pd.DataFrame({"x": [3, 97]})).tolist()
    [False, True]
    """

    def predict_proba(self, X: Any, *, iteration_range: Any = None, base_margin: Any = None) -> Any:
        """Predict class probabilities.

        Parameters
        ----------
        X, iteration_range, base_margin
            As in ``predict``.

        Returns
        -------
        dask.dataframe.DataFrame or array of shape (n_rows, n_classes)
            Lazy for a Dask frame, one column per class, with the frame's index. Else computed here.

        Raises
        ------
        ValueError
            The objective gives none: ``"binary:hinge"``, or a function.
        """
        return self._ask(X, "probabilities", iteration_range, base_margin)


@documented_by(XGBEstimator)
class XGBRegressor(XGBEstimator, DaskRegressor):
    """Predict a number with gradient boosted trees (XGBoost), grown on all workers of a Dask cluster.

    Labels so large that float32 cannot tell them apart, such as times in milliseconds, are trained on less a constant
    where the loss only looks at differences; ``predict`` adds it again, ``model_`` does not have it. Other objectives
    refuse them.

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> reg = XGBRegressor(n_estimators=50, verbose=0).fit(X, 2.0 * X.x)
    >>> bool(abs(reg.predict(pd.DataFrame({"x": [50]}))[0] - 100) < 10)
    True
    """


@documented_by(XGBEstimator)
class XGBRanker(XGBEstimator):
    """Order the rows of each query with gradient boosted trees (XGBoost), grown on all workers of a Dask cluster.

    ``fit`` needs ``qid=``, the query of each row; rows of one query are brought together wherever they lie.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = pd.DataFrame({"query": [i // 10 for i in range(100)], "x": range(100)})
    >>> ranker = XGBRanker(n_estimators=5, verbose=0).fit(rows[["x"]], rows.x % 10 // 5, qid=rows["query"])
    >>> ranker.predict(rows[["x"]]).shape
    (100,)
    """
