"""PyTorch networks on Dask data: data-parallel training, lazy prediction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from torch import nn

from daskdl.clients import current_client
from daskdl.data.batches import Transform, check_transform
from daskdl.data.schema import Missing
from daskdl.errors import LossDiverged
from daskdl.estimators.base import DaskClassifier, DaskEstimator, DaskRegressor, documented_by, fit_again
from daskdl.estimators.forward import Module, class_outputs, make_module, number_outputs
from daskdl.estimators.predict import Predictor
from daskdl.estimators.tabular import TabularNet
from daskdl.execution.interrupts import held_interrupts, noted_interrupts
from daskdl.training.begin import begin
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.fit import FitConfig, fit_loop, make_optimizer
from daskdl.training.following import in_background
from daskdl.training.job import Job, NumWorkers, rules_of, started, weight_column
from daskdl.training.losses import as_loss
from daskdl.training.resuming import Resumed, remember_call, workers_for
from daskdl.training.trial import n_outputs_for, standardised, try_out


class _TorchEstimator(DaskEstimator):
    """Train a PyTorch module data-parallel on the workers of a Dask cluster.

    Parameters
    ----------
    module : torch.nn.Module or callable, optional
        Called with ``numbers`` of shape (n_rows, n_numbers) and, if there are category columns, ``codes`` of shape
        (n_rows, n_categories). A callable is called as ``module(schema, n_outputs)`` and returns the module. By
        default a ``TabularNet``. The module given is never changed; the trained copy is ``model_``.
    epochs : int
    batch_size : int
        Rows per global batch, over all workers together, whatever their number.
    learning_rate, weight_decay : float
    optimizer : str or callable
        A name in ``torch.optim``, or ``f(parameters, lr=...)``.
    loss : callable, optional
        ``loss(output, y)``, the mean over rows. By default cross entropy, or the mean squared error of standardised
        labels.
    missing : {"impute", "indicator", "refuse"}
        What happens to missing numbers, see ``Schema``.
    patience : int, optional
        With validation data: stop after so many epochs without a better ``val_loss``, and keep the best weights.
    sampling : str, optional
        ``"balanced"``: rows are used so that all classes come up alike. The name of a column of ``X``: in proportion
        to its values; it is no feature. By default every row is used once per epoch.
    kinds : dict, optional
        How columns are read where it is not to be found out: ``{"photo": Image(224, 224), "zip": "category"}``, see
        ``Schema.learn``.
    batch_transform : callable, optional
        ``batch_transform(arrays, keys)`` on every training batch, in the background of the ranks; see ``RankBatches``.
    num_workers : int or (int, int), optional
        Ranks; all workers by default. When workers are lost, training goes on with as few as one, and takes in those
        that join until there are as many again. A pair sets the fewest and the most: below the fewest it waits.
    reproducible : bool or int
        Weights with the same bits at any number of workers, and whatever is lost on the way: every batch is cut into
        8 virtual ranks (or as many as given), which are added up in a fixed order. It costs speed; see the guide.
    checkpoints : Checkpoints or str, optional
        Where and how often the state is written, besides what the workers hold in memory; a string is the path. By
        default once a minute and at the end, into the folder of the run.
    seed : int
        Decides initial weights, the order of the rows and dropout.
    name : str, optional
        Of the run.
    verbose : int
        0 shows nothing.

    Attributes
    ----------
    model_ : torch.nn.Module
        The trained module, on the CPU, in eval mode.
    schema_ : Schema
        How columns became numbers.
    run_ : Run
        What happened.
    n_features_in_ : int
    feature_names_in_ : array of str
        If the names are strings.
    """

    def __init__(
        self,
        module: Module = None,
        *,
        epochs: int = 10,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: str | Callable[..., Any] = "adam",
        loss: Callable[..., Any] | None = None,
        missing: Missing = "impute",
        patience: int | None = None,
        sampling: str | None = None,
        kinds: dict[Any, Any] | None = None,
        batch_transform: Transform | None = None,
        num_workers: NumWorkers = None,
        reproducible: bool | int = False,
        checkpoints: Checkpoints | str | None = None,
        seed: int = 0,
        name: str | None = None,
        verbose: int = 1,
    ) -> None:
        self.module = module
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.loss = loss
        self.missing = missing
        self.patience = patience
        self.sampling = sampling
        self.kinds = kinds
        self.batch_transform = batch_transform
        self.num_workers = num_workers
        self.reproducible = reproducible
        self.checkpoints = checkpoints
        self.seed = seed
        self.name = name
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, validation_data: tuple[Any, Any] | None = None, background: bool = False) -> Self:
        """Train. Blocks until it is done; the rows stay on the workers.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, array of shape (n_rows, n_features), or Source
            A Dask frame is computed partition by partition into the memory of the workers. A source, such as
            ``daskdl.ParquetSource(path)``, is read from its files while training, whatever its size.
        y : Series of length n_rows, or str
            Labels, or the name of their column in ``X``.
        validation_data : tuple, optional
            ``(X, y)``, evaluated after every epoch.
        background : bool
            Train in a process of its own, which the end of this notebook does not end, and return when the run has
            begun: ``run_`` follows it, as ``daskdl.attach(run_.id)`` does from any notebook. The trained estimator is
            saved in the run's folder: ``daskdl.load(f"{run_.folder}/model")``.

        Returns
        -------
        self

        Raises
        ------
        DataError, NotEnoughWorkers, ValueError
            Before anything is launched.
        RankFailed
            A worker failed or died.
        LossDiverged
            The loss became NaN; ``model_`` then holds the last good weights.
        KeyboardInterrupt
            The cell was interrupted: the ranks stopped after their step, and ``model_`` holds the weights of that
            step. A second interrupt does not wait for it.
        """
        if background:
            call = (fit_again, None, self._unfitted(), X, y, validation_data)
            self.run_ = in_background(current_client(), self.num_workers, *call)
            return self
        return self._fit(None, X, y, validation_data)

    @noted_interrupts()
    def _fit(self, resumed: Resumed | None, X: Any, y: Any, validation_data: tuple[Any, Any] | None) -> Self:
        config = FitConfig(self.optimizer, self.learning_rate, self.weight_decay, self.patience)
        if self.patience is not None and validation_data is None:
            raise ValueError(f"patience={self.patience} needs validation_data=(X, y): it is what is waited for.")
        loss = None if self.loss is None else as_loss(self.loss)
        client = begin(None, self.checkpoints, X, y, validation_data)
        several = isinstance(self, DaskRegressor)
        weight = weight_column(self.sampling)
        rows = self._read(X, y, client, moments=True, weight=weight, kinds=self.kinds, several=several)
        self._made_for = n_outputs_for(loss, self.target_)
        module = make_module(self.module, self.schema_, self._made_for, self.seed)
        trial = try_out(module, loss, self.target_, self.schema_, rows.label, weighted=False)
        self.target_ = standardised(self.target_, trial)
        self._reads, self._n_outputs = trial.objective.reads, trial.n_outputs
        with held_interrupts():  # the first optimizer of a process makes torch import its compiler
            make_optimizer(config, module)  # refuses a wrong one before anything is launched
        y_type = np.float32 if self.target_.classes is None else np.int64
        check_transform(self.batch_transform, self.schema_.example(2) | {"y": np.zeros(2, dtype=y_type)})
        validation = self._read_validation(validation_data, client)
        job = Job(
            rows,
            self.schema_,
            self.target_,
            self.batch_size,
            self.epochs,
            self.seed,
            workers_for(resumed, self.num_workers),
            client,
            validation,
            self.sampling,
            self.batch_transform,
            rules_of(self.checkpoints),
            self.reproducible,
            trial.takes_one_row,
        )
        title = self.name or str(getattr(self.module or TabularNet, "__name__", type(self.module).__name__))
        params = {k: v for k, v in self.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
        with started(title, type(self).__name__, params, job, self.verbose, resumed) as run:
            self.run_ = run
            remember_call(run, job.checkpoints, job.fingerprint, fit_again, self._unfitted(), X, y, validation_data)
            try:
                model, _ = job.run(
                    fit_loop, (module, trial.objective, config), run, resumed.commit if resumed else None
                )
            except LossDiverged as error:
                module.load_state_dict(error.state or module.state_dict())
                self.model_ = module.eval()
                raise
            self.model_ = model.eval()
            self._save_for_others(run)
        return self

    def _model_notes(self) -> dict[str, Any]:
        outputs = {"reads": self._reads, "made_for": self._made_for, "n_outputs": self._n_outputs}
        return {"default": self.module is None, **outputs}

    def _model_bytes(self) -> bytes:
        from safetensors.torch import save

        return save({k: v.contiguous() for k, v in self.model_.state_dict().items()})

    def _model_from_bytes(self, data: bytes, notes: dict[str, Any]) -> nn.Module:
        from safetensors.torch import load

        if self.module is None and not notes["default"]:
            raise ValueError(
                "this estimator was trained with a module of its own, and a file holds its weights only. Pass it: "
                "daskdl.load(path, module=net)."
            )
        self._reads, self._made_for, self._n_outputs = notes["reads"], notes["made_for"], notes["n_outputs"]
        module = make_module(self.module, self.schema_, self._made_for, self.seed)
        module.load_state_dict(load(data))
        return module.eval()


@documented_by(_TorchEstimator)
class TorchClassifier(DaskClassifier, _TorchEstimator):
    """Classify rows with a PyTorch network, trained data-parallel on the workers of a Dask cluster.

    classes_ : array of shape (n_classes,)

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> clf = TorchClassifier(epochs=20, batch_size=10, verbose=0).fit(X, X.x > 49)
    >>> clf.predict(pd.DataFrame({"x": [3, 97]})).tolist()
    [False, True]
    """

    def _predictor(self) -> Predictor:
        return Predictor(self.model_, self.schema_, self.target_, partial(class_outputs, reads=self._reads))

    def predict_proba(self, X: Any) -> Any:
        """Predict class probabilities; see ``DaskClassifier.predict_proba``.

        Raises
        ------
        ValueError
            The loss has no probabilities: ``MultiMarginLoss``.
        """
        if getattr(self, "_reads", None) == "scores":
            raise ValueError(
                "the loss was MultiMarginLoss, whose outputs are scores and no probabilities. Use predict, or train "
                "with CrossEntropyLoss."
            )
        return super().predict_proba(X)


@documented_by(_TorchEstimator)
class TorchRegressor(DaskRegressor, _TorchEstimator):
    """Predict a number with a PyTorch network, trained data-parallel on the workers of a Dask cluster.

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> reg = TorchRegressor(epochs=200, batch_size=10, verbose=0).fit(X, 2.0 * X.x)
    >>> bool(abs(reg.predict(pd.DataFrame({"x": [50]}))[0] - 100) < 10)
    True
    """

    def _predictor(self) -> Predictor:
        names = self.target_.names or (tuple(range(self._n_outputs)) if self._n_outputs > 1 else ())
        outputs = partial(number_outputs, reads=self._reads)
        return Predictor(self.model_, self.schema_, self.target_, outputs, names)
