"""PyTorch networks on Dask data: data-parallel training, lazy prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

from torch import nn

from daskdl.clients import current_client
from daskdl.data.batches import Transform
from daskdl.data.schema import Missing
from daskdl.estimators.base import DaskClassifier, DaskEstimator, DaskRegressor, documented_by
from daskdl.estimators.fitting import Request, fit_network
from daskdl.estimators.forward import Module, class_outputs, make_module, number_outputs
from daskdl.estimators.predict import Predictor
from daskdl.estimators.weights import put_weights, weights_of
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.following import in_background
from daskdl.training.job import NumWorkers


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
    lr_scheduler : str or callable, optional
        Changes the learning rate: a name in ``torch.optim.lr_scheduler``, or ``f(optimizer)``, which returns one, or a
        dict ``{"scheduler": one, "interval": "step"}``. It goes on after every epoch; ``OneCycleLR`` and ``CyclicLR``
        after every step.
    loss : callable, optional
        One of ``torch.nn``'s, or a function ``loss(output, y)`` of your own, which returns the mean over the rows it
        got, or the loss of each, or ``(total, count)``, two sums over these rows that are divided when those of all
        ranks are added up. By default cross entropy, or the mean squared error. Labels of a regression are
        standardised, unless the loss looks at more than differences, as ``PoissonNLLLoss`` does.
    class_weight : dict or "balanced", optional
        What rows of each class count in the loss of a classifier.
    gradient_clip_val : float, optional
        Largest norm of all gradients together.
    accumulate_grad_batches : int
        Batches whose gradients make one step, as if they were one batch.
    precision : {"32", "bf16", "16"}
        In which the module computes, by autocast; weights stay float32.
    frozen : str or list of str, optional
        Parameters that stay as they are: names, names of layers, or patterns such as ``"encoder.*.bias"``.
    metrics : list or dict, optional
        Computed over the validation rows after every epoch, and logged as ``val_<name>``: scikit-learn's names, such as
        ``"f1"``, or functions ``f(y_true, y_pred)``. Of many rows a random part is taken, 32 MiB.
    callbacks : list, optional
        Functions ``f(context, values)``, called after every epoch in every rank, or objects with
        ``on_step_end(context, values)`` and ``on_epoch_end(context, values)``. One that returns True ends the training.
        If they have a ``state_dict``, it belongs to the commits. They are sent to the ranks: yours stay as they are.
    warm_start : bool
        Whether ``fit`` goes on from the weights of the fit before, and reads columns as that one did.
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
        lr_scheduler: str | Callable[..., Any] | None = None,
        loss: Callable[..., Any] | None = None,
        class_weight: Any = None,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        precision: str = "32",
        frozen: str | Sequence[str] | None = None,
        metrics: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
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
        self.lr_scheduler = lr_scheduler
        self.loss = loss
        self.class_weight = class_weight
        self.gradient_clip_val = gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches
        self.precision = precision
        self.frozen = frozen
        self.metrics = metrics
        self.callbacks = callbacks
        self.warm_start = warm_start
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

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        validation_data: tuple[Any, ...] | None = None,
        background: bool = False,
    ) -> Self:
        """Train. Blocks until it is done; the rows stay on the workers.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, array of shape (n_rows, n_features), or Source
            A Dask frame is computed partition by partition into the memory of the workers. A source, such as
            ``daskdl.ParquetSource(path)``, is read from its files while training, whatever its size.
        y : Series of length n_rows, or str
            Labels, or the name of their column in ``X``. Of a regressor also several: a frame, an array of shape
            (n_rows, n_targets), or a list of names; or none, with a ``loss``: it is then given the module's first
            input as the label, as an autoencoder wants it.
        sample_weight : Series of length n_rows, or str, optional
            What each row counts in the loss, or the name of the column, which is then no feature.
        validation_data : tuple, optional
            ``(X, y)`` or ``(X, y, sample_weight)``, evaluated after every epoch.
        background : bool
            Train in a process of its own, which the end of this notebook does not end, and return when the run has
            begun: ``run_`` follows it, as ``daskdl.attach(run_.id)`` does from any notebook. The trained estimator is
            saved in the run's folder: ``daskdl.load(f"{run_.folder}/model")``.

        Returns
        -------
        self

        Raises
        ------
        DataError, NotEnoughWorkers, TypeError, ValueError
            Before anything is launched: module, loss and labels are tried together on a few made-up rows.
        RankFailed
            A worker failed or died.
        LossDiverged
            The loss became NaN; ``model_`` then holds the last good weights.
        KeyboardInterrupt
            The cell was interrupted: the ranks stopped after their step, and ``model_`` holds the weights of that
            step. A second interrupt does not wait for it.
        """
        continues = self.warm_start and hasattr(self, "model_")
        request = Request(X, y, sample_weight, validation_data, self.epochs, continues, keeps_state=self.warm_start)
        if background:
            estimator = self if continues else self._unfitted()
            self.run_ = in_background(current_client(), self.num_workers, fit_network, None, estimator, request)
            return self
        return fit_network(None, self, request)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch more on these rows, from the weights there are; the first call begins.

        The first call decides how columns are read: means, categories and, unless ``classes`` names them, the classes.
        The optimizer goes on with its state.

        Parameters
        ----------
        X, y, sample_weight
            As in ``fit``.
        classes : array, optional
            All classes there will be, where the first rows may lack some.
        """
        continues = hasattr(self, "model_")
        return fit_network(None, self, Request(X, y, sample_weight, None, 1, continues, True, classes))

    def _model_notes(self) -> dict[str, Any]:
        outputs = {"reads": self._reads, "made_for": self._made_for, "n_outputs": self._n_outputs}
        return {"default": self.module is None, **outputs, "weights": weights_of(self.model_)[1]}

    def _model_bytes(self) -> bytes:
        from safetensors.torch import save

        return save(weights_of(self.model_)[0])

    def _model_from_bytes(self, data: bytes, notes: dict[str, Any]) -> nn.Module:
        from safetensors.torch import load

        if self.module is None and not notes["default"]:
            raise ValueError(
                "this estimator was trained with a module of its own, and a file holds its weights only. Pass it: "
                "daskdl.load(path, module=net)."
            )
        self._reads, self._made_for, self._n_outputs = notes["reads"], notes["made_for"], notes["n_outputs"]
        module = make_module(self.module, self.schema_, self._made_for, self.seed)
        put_weights(module, load(data), notes.get("weights", {}))
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
