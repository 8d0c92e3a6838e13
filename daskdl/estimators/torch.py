"""PyTorch networks on Dask data: data-parallel training, lazy prediction."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from daskdl.clients import current_client
from daskdl.data.arrays import Ragged
from daskdl.data.batches import Transform, check_transform
from daskdl.data.schema import Missing, Schema
from daskdl.errors import DataError, LossDiverged
from daskdl.estimators.base import DaskClassifier, DaskEstimator, DaskRegressor, documented_by, fit_again
from daskdl.estimators.tabular import TabularNet
from daskdl.execution.interrupts import held_interrupts, noted_interrupts
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.fit import FitConfig, class_scores, fit_loop, make_optimizer
from daskdl.training.following import in_background
from daskdl.training.job import Job, NumWorkers, rules_of, started, weight_column
from daskdl.training.resuming import Resumed, remember_call, workers_for
from daskdl.training.tensors import to_tensors
from daskdl.travel import pack

PREDICT_ROWS = 65_536  # rows per forward pass, at most
PREDICT_BYTES = 64 * 2**20  # of their inputs

Module = nn.Module | Callable[[Schema, int], nn.Module] | None


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
        config = FitConfig(self.optimizer, self.learning_rate, self.weight_decay, self.loss, self.patience)
        if self.patience is not None and validation_data is None:
            raise ValueError(f"patience={self.patience} needs validation_data=(X, y): it is what is waited for.")
        client = self._client()
        rows = self._read(X, y, client, moments=True, weight=weight_column(self.sampling), kinds=self.kinds)
        module = self._make_module()
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
        )
        title = self.name or str(getattr(self.module or TabularNet, "__name__", type(self.module).__name__))
        params = {k: v for k, v in self.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
        with started(title, type(self).__name__, params, job, self.verbose, resumed) as run:
            self.run_ = run
            remember_call(run, job.checkpoints, job.fingerprint, fit_again, self._unfitted(), X, y, validation_data)
            try:
                answer = job.run(fit_loop, (module, config), run, resumed.commit if resumed else None)
            except LossDiverged as error:
                module.load_state_dict(error.state or module.state_dict())
                self.model_ = module.eval()
                raise
            if answer.problem is not None:  # what the module became cannot be sent, but what it learned was
                module.load_state_dict(answer.state["model"])
            self.model_ = (module if answer.problem is not None else answer.value).eval()
            self._save_for_others(run)
        return self

    def _n_outputs(self) -> int:
        return 1 if self.target_.n_classes <= 2 else self.target_.n_classes

    def _make_module(self) -> nn.Module:
        """Copy or build the module, and see on two rows that what comes out has the right shape."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = copied(self.module) if isinstance(self.module, nn.Module) else self._built_module()
            self._check_module(module)
        return module

    def _built_module(self) -> nn.Module:
        wanted = "Expected a torch.nn.Module, or a function module(schema, n_outputs) that makes one"
        build = TabularNet if self.module is None else self.module
        if not callable(build):
            raise TypeError(f"{wanted}; got {self.module!r}.")
        try:
            module = build(self.schema_, self._n_outputs())
        except Exception as error:
            error.add_note(f"It was raised by module(schema, {self._n_outputs()}). {wanted}; got {self.module!r}.")
            raise
        if not isinstance(module, nn.Module):
            raise TypeError(f"{wanted}; this one made {type(module).__name__}.")
        return module

    def _check_module(self, module: nn.Module) -> None:
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(f"module has no parameters that learn: {module!r}. Add a layer, or set requires_grad.")
        example = self.schema_.example(2)
        took = " and ".join(f"{name} {x.shape}" for name, x in example.items())
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        inputs, _ = to_tensors(example, device)
        training = module.training
        try:
            with torch.no_grad():
                output = module.eval()(*inputs)
        except Exception as error:
            raise ValueError(
                f"module cannot take the inputs this data makes, {took} for two rows: {type(error).__name__}: {error}. "
                "Take them in this order, and size the first layers by schema.n_numbers and schema.cardinalities, or "
                "give a function module(schema, n_outputs) that does."
            ) from error
        module.train(training)
        n = self.target_.n_classes
        right = [(2,), (2, 1)] if n <= 2 else []
        right += [(2, n)] if n >= 2 else []
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        if shape not in right and self.loss is None:
            raise ValueError(
                f"module gave an output of shape {shape} for two rows ({took}); expected "
                f"{' or '.join(map(str, right))} for {f'{n} classes' if n else 'a regression'}. Change its last layer."
            )

    def _model_notes(self) -> dict[str, Any]:
        return {"default": self.module is None}

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
        module = self._make_module()
        module.load_state_dict(load(data))
        return module.eval()


def copied(module: nn.Module) -> nn.Module:
    """Copy a module, also one that holds what was computed from its weights, as the old ``weight_norm`` does."""
    held = (value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor))
    computed = {id(tensor): tensor.detach().clone() for tensor in held if tensor.grad_fn is not None}
    try:
        return copy.deepcopy(module, computed)
    except Exception:  # of any class: it is the user's own objects
        copy_: nn.Module = pack(module, "module").open()
        return copy_


@torch.no_grad()
def _forward(model: nn.Module, schema: Schema, frame: pd.DataFrame) -> torch.Tensor:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    block = schema.encode(frame)
    model = model.to(device).eval()
    row_bytes = sum(x.nbytes for x in schema.example(1).values())  # decoded, and padded to the longest row
    row_bytes += sum(
        8 * int(x.lengths.max(initial=0)) * x.values[:1].size for x in block.values() if isinstance(x, Ragged)
    )
    rows = max(1, min(PREDICT_ROWS, PREDICT_BYTES // max(1, row_bytes)))
    outputs = []
    for i in range(0, len(frame), rows):
        try:
            finished = schema.finish({name: x[i : i + rows] for name, x in block.items()})
        except DataError as error:
            raise error.moved(i) from error
        inputs, _ = to_tensors(finished, device)
        outputs.append(model(*inputs))
    return torch.cat(outputs).cpu()


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

    @staticmethod
    def _outputs(model: nn.Module, schema: Schema, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = class_scores(_forward(model, schema, frame)).softmax(1).numpy()
        return found


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

    @staticmethod
    def _outputs(model: nn.Module, schema: Schema, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = _forward(model, schema, frame).reshape(-1).numpy()
        return found
