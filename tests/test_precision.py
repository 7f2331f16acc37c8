"""Products of less precision on the CPU: what is stored of factors in a network, and when.

The contract's cases have the single products. Here all that trains and predicts in compiled code is compared, to the
bit, with loops that call those products one at a time and round their factors in each call.
"""

import concurrent.futures
import copy
import os
import pickle

import numpy as np
import pytest

import fastbp
from fastbp.kernels import contract, cpu, layout
from fastbp.kernels.cpu import factors, units

from .conftest import bfloat16_units
from .contract.cases import assert_same_bits, with_fewer_bits

PRECISIONS = ["bf16", "bf16x3"]
LOSS = fastbp.CrossEntropyLoss()
ROWS, FEATURES, CLASSES = 75, 19, 5
each_unit = pytest.mark.parametrize("unit", bfloat16_units(), indirect=True)


def each_precision(test):
    """By every unit that multiplies bfloat16."""
    return each_unit(pytest.mark.parametrize("precision", PRECISIONS)(test))


def network(precision, device="cpu", norms=True):
    """Every way by which a factor comes about: data, activations, dropout, sums, normalisations."""
    layers = [
        fastbp.Linear(FEATURES, 33), fastbp.GELU(),
        fastbp.Residual(fastbp.Linear(33, 33), fastbp.Tanh(), fastbp.Linear(33, 33)),
        fastbp.Residual(fastbp.LayerNorm(33), fastbp.Linear(33, 33), fastbp.ReLU()),
        *([fastbp.BatchNorm1d(33)] if norms else []),
        fastbp.Linear(33, 16), fastbp.Dropout(0.25), fastbp.SiLU(),
        fastbp.Linear(16, CLASSES),
    ]  # fmt: skip
    return fastbp.Sequential(*layers, seed=3, device=device, precision=precision)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def data(rng):
    return rng.standard_normal((ROWS, FEATURES), dtype=np.float32), rng.integers(0, CLASSES, ROWS)


def trained(model, X, y, epochs=2, **options):
    optimizer = options.pop("optimizer", None) or fastbp.Adam(lr=1e-2)
    model.fit(X, y, loss=LOSS, optimizer=optimizer, epochs=epochs, batch_size=20, verbose=False, **options)
    return model


@each_precision
def test_compiled_steps_are_those_of_single_products(data, precision, unit):
    """``clip_norm`` makes steps of stored gradients, by products that round their factors each time."""
    compiled = trained(network(precision), *data)
    stored = trained(network(precision), *data, optimizer=fastbp.Adam(lr=1e-2, clip_norm=1e30))
    assert_same_bits(compiled.flat_parameters, stored.flat_parameters)
    assert compiled.history["loss"] == pytest.approx(stored.history["loss"], rel=1e-6)
    assert_same_bits(compiled.predict(data[0]), stored.predict(data[0]))


@each_precision
def test_a_prediction_is_that_of_a_loop_and_of_a_row(data, precision, unit):
    X, _ = data
    model = network(precision)
    whole = model.predict(X)
    model.training = False
    assert_same_bits(np.asarray(model(X)), whole)
    for i, j in ((0, 1), (7, 30), (74, 75)):
        assert_same_bits(model.predict(X[i:j]), whole[i:j])
    assert_same_bits(model.predict(X.astype(np.float64)), whole)


@each_precision
def test_few_rows_are_rows_of_many_on_the_way_back(rng, precision, unit):
    """Few rows are multiplied by the weight, many by its transpose: an element is one chain in one order."""
    model = fastbp.Sequential(fastbp.Linear(300, 280), fastbp.Tanh(), fastbp.Linear(280, 270), precision=precision)
    grad = rng.standard_normal((400, 270), dtype=np.float32)
    X = rng.standard_normal((400, 300), dtype=np.float32)
    gradients = []
    for rows in (400, 3):
        model(X[:rows])
        gradients.append(np.asarray(model.backward(grad[:rows])))
    assert_same_bits(gradients[1], gradients[0][:3])


@each_precision
def test_threads_change_no_bit(data, precision, unit):
    X, y = data
    found = []
    try:
        for threads in (1, 3):
            fastbp.set_num_threads(threads)
            model = trained(network(precision), X, y)
            found.append((model.flat_parameters, model.predict(X)))
    finally:
        cpu.set_num_threads(None)
        fastbp.backend._threads = None
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


@each_precision
def test_beside_the_reference(data, precision, unit):
    """A number next to the middle of two may be rounded either way, so weights of bf16 are near, not equal."""
    X, y = data
    ours, reference = (network(precision, device) for device in ("cpu", "reference"))
    limit = {"bf16": 2e-3, "bf16x3": 2e-5}[precision]
    assert np.abs(ours.predict(X) - reference.predict(X)).max() < limit
    exact = network("ieee").predict(X)
    assert np.abs(ours.predict(X) - exact).max() < {"bf16": 3e-2, "bf16x3": 1e-4}[precision]
    for model in (ours, reference):
        trained(model, X, y, optimizer=fastbp.SGD(lr=0.1))
    assert np.abs(ours.flat_parameters - reference.flat_parameters).max() < limit
    assert ours.history["loss"] == pytest.approx(reference.history["loss"], rel=limit)


@each_unit
def test_master_weights_are_float32(data, unit):
    """Updates far below the distance of bfloat16 numbers are not lost."""
    model = network("bf16")
    before = model.flat_parameters
    trained(model, *data, optimizer=fastbp.SGD(lr=1e-5))
    after = model.flat_parameters
    assert (after != before).mean() > 0.9
    assert np.abs(after - with_fewer_bits(after, "bf16")).max() > 0


@each_precision
def test_weights_that_somebody_changes_are_those_multiplied(data, precision, unit):
    """By a view, by assigning, by loading: what was stored of the weights before counts for nothing."""
    X, y = data
    layers = fastbp.Linear(FEATURES, 33), fastbp.Tanh(), fastbp.Linear(33, CLASSES)
    model = fastbp.Sequential(*layers, seed=0, precision=precision)
    model.predict(X)
    view = model.layers[0].weight
    for change in range(3):
        model.train_step(X, y, loss=LOSS, optimizer=fastbp.SGD(lr=0.1))
        if change == 0:
            view[2] *= 0.5
        elif change == 1:
            model.flat_parameters = model.flat_parameters * np.float32(1.25)
        else:
            model.load_state_dict({name: -array for name, array in model.state_dict().items()})
        fresh = copy.deepcopy(model)
        assert_same_bits(model.predict(X), fresh.predict(X))
        losses = [one.train_step(X, y, loss=LOSS, optimizer=fastbp.SGD(lr=0.1)) for one in (model, fresh)]
        assert losses[0] == losses[1]
        assert_same_bits(model.flat_parameters, fresh.flat_parameters)


@each_precision
def test_one_call_of_many_steps_is_many_calls(data, precision, unit):
    """A weight that is not stored anew after its update would be seen by the next step of the same call only."""
    X, y = data
    layers = (fastbp.Linear(FEATURES, 300), fastbp.Tanh(), fastbp.Linear(300, CLASSES))
    together, apart = (fastbp.Sequential(*copy.deepcopy(layers), seed=1, precision=precision) for _ in range(2))
    trained(together, X, y, epochs=1, shuffle=False, optimizer=fastbp.SGD(lr=0.5))
    optimizer = fastbp.SGD(lr=0.5)
    for i in range(0, ROWS, 20):
        apart.train_step(X[i : i + 20], y[i : i + 20], loss=LOSS, optimizer=optimizer)
    assert_same_bits(together.flat_parameters, apart.flat_parameters)


@each_precision
def test_frozen_layers_and_accumulated_gradients(data, precision, unit):
    X, y = data
    models = [network(precision, norms=False) for _ in range(2)]
    for model in models:
        model.layers[0].trainable = False
    frozen = models[0].layers[0].weight.copy()
    trained(models[0], X, y)
    trained(models[1], X, y, optimizer=fastbp.Adam(lr=1e-2, clip_norm=1e30))
    assert_same_bits(models[0].layers[0].weight, frozen)
    assert_same_bits(models[0].flat_parameters, models[1].flat_parameters)
    trained(models[0], X, y, accumulate=2)
    assert np.isfinite(models[0].history["loss"]).all()


@each_precision
def test_many_models_and_many_threads(data, precision, unit):
    """Each trains as alone: of `fit_many`, and of threads of the user's own beside the team."""
    X, y = data
    alone = trained(network(precision), X, y).flat_parameters
    models = [network(precision) for _ in range(3)]
    fastbp.fit_many(
        models, X, y, loss=LOSS, optimizer=lambda: fastbp.Adam(lr=1e-2), epochs=2, batch_size=20, verbose=False
    )
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        models += pool.map(lambda _: trained(network(precision), X, y), range(4))
    for model in models:
        assert_same_bits(model.flat_parameters, alone)


@each_unit
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_trains(data, unit):
    X, y = data
    expected = trained(network("bf16x3"), X, y).flat_parameters
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, pickle.dumps(trained(network("bf16x3"), X, y).flat_parameters))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert_same_bits(found, expected)


def test_a_network_of_the_dtype_stores_nothing():
    model = network("ieee")
    plan = factors.planned(model.program, model.program.training)
    assert plan.instructions is model.program.training.decoded
    assert (plan.activations, plan.gradients) == (model.program.training.width,) * 2
    arrays = {
        precision: sum(array.nbytes for array in cpu.InferenceWorkspace(lowered, np.float32).arrays)
        for precision in cpu.precisions(np.dtype("float32"))
        for lowered in [model.program.with_precision(precision)]
    }
    weights = model.program.size * 4
    assert arrays["bf16"] - arrays["ieee"] >= weights
    assert arrays["bf16x3"] - arrays["ieee"] >= 2 * weights


@each_precision
def test_every_factor_is_stored_once_between_its_last_writer_and_its_first_product(precision, unit):
    lowered = network(precision).program
    for listing in (lowered.training, lowered.evaluation, lowered.inference):
        plan = factors.planned(lowered, listing)
        made = {}  # part -> what it is of
        for instruction in plan.instructions:
            if instruction.operation == factors.STORE:
                source, *parts = instruction.operands[:3]
                assert (source, instruction.number) not in made.values()
                made |= dict.fromkeys(filter(None, parts), (source, instruction.number))
                continue
            declaration = contract.FUNCTIONS[instruction.operation]
            named = dict(zip(declaration.operands, instruction.operands, strict=False))
            assert not {named[name] for name in declaration.writes}.intersection(source for source, _ in made.values())
            if instruction.operation in factors.PRODUCTS:
                forms = factors.forms_of(instruction.operation, unit)
                for factor, form in zip(instruction.operands[:2], forms, strict=True):
                    assert factor.buffer == factors.WEIGHT_FACTORS or made[factor][1] == form
        assert plan.phases[-1][2] == len(plan.instructions)


def test_precisions_of_dtypes_and_devices():
    assert cpu.precisions(np.dtype("float32")) == ("ieee", "bf16", "bf16x3")
    assert cpu.precisions(np.dtype("float64")) == ("ieee",)
    assert set(factors.PARTS) < set(layout.PRECISIONS)
    with pytest.raises(ValueError, match='dtype="float64" has precision "ieee", got "bf16": choose dtype="float32"'):
        fastbp.Sequential(fastbp.Linear(2, 3), dtype="float64", precision="bf16")
    with pytest.raises(ValueError, match='has precision "ieee", "bf16", "bf16x3", got "tf32": tensor cores have it'):
        fastbp.Sequential(fastbp.Linear(2, 3), precision="tf32")


@each_precision
def test_copies_and_files(data, tmp_path, precision, unit):
    """A copy keeps the precision; a file is the same for all, and who loads it says how it is to compute."""
    X, y = data
    model = trained(network(precision), X, y)
    assert copy.deepcopy(model).precision == pickle.loads(pickle.dumps(model)).precision == precision
    model.save(tmp_path / "model.npz")
    assert fastbp.load(tmp_path / "model.npz").precision == "ieee"
    loaded = fastbp.load(tmp_path / "model.npz", precision=precision)
    assert f'precision="{precision}"' in repr(loaded)
    assert_same_bits(loaded.predict(X), model.predict(X))
    assert_same_bits(loaded.to("cpu", "bf16").predict(X), model.to("cpu", "bf16").predict(X))
    assert_same_bits(loaded.to("cpu").predict(X), model.to("cpu").predict(X))


@each_unit
def test_what_is_no_usual_number_in_a_network(unit):
    """A row with NaN or infinity gives NaN or infinity, and no other row does."""
    model = fastbp.Sequential(fastbp.Linear(4, 3), fastbp.Tanh(), fastbp.Linear(3, 2), seed=0)
    X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    X[1, 2], X[3, 0] = np.nan, np.inf
    for precision in PRECISIONS:
        model.to("cpu", precision)
        out = model.predict(X)
        assert np.isnan(out[1]).all()
        assert np.isnan(out[3]).all() == (precision == "bf16x3")  # else tanh makes 1 of infinity
        assert np.isfinite(out[[0, 2, 4, 5]]).all()


def test_a_checkpoint_says_by_which_unit_it_was_made(data, tmp_path, monkeypatch):
    X, y = data
    monkeypatch.setenv(units.VARIABLE, "float32")
    expected = trained(network("bf16"), X, y, epochs=3).flat_parameters
    trained(network("bf16"), X, y, checkpoint=tmp_path)
    resumed = trained(network("bf16"), X, y, epochs=3, resume=tmp_path)
    assert_same_bits(resumed.flat_parameters, expected)
    with pytest.warns(UserWarning, match=r"'precision': 'bf16'.*'bfloat16 unit': 'float32'.*the last bits may differ"):
        trained(network("ieee"), X, y, epochs=3, resume=tmp_path)
    monkeypatch.setenv(units.VARIABLE, "amx-emulated")
    with pytest.warns(UserWarning, match=r"'bfloat16 unit': 'float32'.* here it is .*'bfloat16 unit': 'amx-emulated'"):
        trained(network("bf16"), X, y, epochs=3, resume=tmp_path)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # 30 epochs are enough to see it
def test_estimators_have_it():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    from fastbp.sklearn import MLPClassifier

    X, y = load_digits(return_X_y=True)
    settings = {"hidden_layer_sizes": (32,), "max_iter": 30, "random_state": 0, "dtype": "float32"}
    models = [MLPClassifier(precision=precision, **settings).fit(X / 16, y) for precision in ("ieee", *PRECISIONS)]
    assert [model.model_.precision for model in models] == ["ieee", *PRECISIONS]
    for model in models:
        assert model.score(X / 16, y) > 0.9
    losses = [model.loss_ for model in models]
    assert len(set(losses)) == 3
    assert abs(losses[2] - losses[0]) < abs(losses[1] - losses[0])


def test_commands_have_it(tmp_path, monkeypatch, capsys):
    """And say which unit it is."""
    pytest.importorskip("sklearn")
    from fastbp.cli import figures, main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "write", lambda folder, history, result: "")
    options = ["--hidden", "8", "--epochs", "3"]
    assert main(["train", "digits", *options, "--precision", "bf16"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"float32 · precision bf16 by the {units.chosen()} unit · seed 0" in first
    assert main(["train", "digits", *options]) == 0
    assert "precision" not in capsys.readouterr().out.splitlines()[0]
    loaded = fastbp.load("runs/digits-001", precision="bf16").model
    assert loaded.precision == "bf16"
    written = []
    for precision in ("ieee", "bf16"):
        assert main(["predict", "runs/digits-001", "digits", "-o", f"{precision}.csv", "--precision", precision]) == 0
        written.append((tmp_path / f"{precision}.csv").read_text())
        assert main(["evaluate", "runs/digits-001", "digits", "--precision", precision]) == 0
    assert written[0] != written[1]
    assert main(["info"]) == 0
    assert "bfloat16 unit" in capsys.readouterr().out
    assert main(["train", "digits", *options, "--precision", "tf32"]) != 0
    assert "tensor cores have it" in capsys.readouterr().err
