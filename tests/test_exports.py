"""Networks as ONNX files, run by ONNX Runtime, and as C99 headers, compiled by the machine's compiler."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

import fastbp
from fastbp.layers import LAYERS, Activation
from fastbp.model import Sequential

ACTIVATIONS = sorted(name for name, cls in LAYERS.items() if issubclass(cls, Activation))
CC = shutil.which("cc")
FLAGS = [
    "-std=c99",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pedantic",
    "-Wconversion",
    "-Wshadow",
    "-Wdouble-promotion",
    "-O2",
]


def classifier():
    return (
        fastbp.Linear(7, 7),
        fastbp.ReLU(),
        fastbp.Dropout(0.5),
        fastbp.Linear(7, 7),
        fastbp.Tanh(),
        fastbp.Linear(7, 4),
    )


def residual():
    """Residual blocks, one inside of another, one of the input itself and one with nothing but dropout."""
    inner = fastbp.Residual(fastbp.Linear(6, 6), fastbp.SiLU(), fastbp.Linear(6, 6))
    return (
        fastbp.Residual(fastbp.Linear(6, 6), fastbp.Sigmoid()), fastbp.LayerNorm(6),
        fastbp.Residual(fastbp.Linear(6, 6, bias=False), inner, fastbp.Dropout(0.2)),
        fastbp.Residual(fastbp.Dropout(0.1)), fastbp.Linear(6, 6),
    )  # fmt: skip


def normalised():
    return (
        fastbp.BatchNorm1d(5), fastbp.Linear(5, 5), fastbp.BatchNorm1d(5, eps=0.1, affine=False), fastbp.ReLU(),
        fastbp.Linear(5, 9), fastbp.LayerNorm(9, affine=False),
        fastbp.Residual(fastbp.LayerNorm(9, eps=0.01), fastbp.Tanh()), fastbp.Linear(9, 3, bias=False),
    )  # fmt: skip


def wide():
    return fastbp.Linear(64, 128), fastbp.SiLU(), fastbp.Linear(128, 96), fastbp.Sigmoid(), fastbp.Linear(96, 2)


def single():
    return (fastbp.Linear(3, 3),)


def ends_in_an_activation():
    return fastbp.Tanh(), fastbp.Linear(4, 4), fastbp.ReLU(), fastbp.ReLU(), fastbp.Dropout(0.5)


ARCHITECTURES = [classifier, residual, normalised, wide, single, ends_in_an_activation]


def network(layers, dtype="float32", **where):
    """A network whose parameters and running statistics are far from their first values."""
    model, rng = Sequential(*layers, dtype=dtype, seed=0, **where), np.random.default_rng(1)
    state = model.state_dict()
    for name, array in state.items():
        array += rng.uniform(0, 1, array.shape) if name.endswith("var") else rng.normal(scale=0.1, size=array.shape)
    model.load_state_dict(state)
    return model


def rows(model, n=33):
    return np.random.default_rng(2).normal(size=(n, model.in_features)).astype(model.dtype)


def close(result, expected, of_float64=1e-14):
    assert result.dtype == expected.dtype
    limit = 1e-6 if expected.dtype == np.float32 else of_float64
    np.testing.assert_allclose(result, expected, rtol=0, atol=limit * max(1, np.abs(expected).max()))


# ----------------------------------------------------------------------------------------- ONNX
def onnx_session(model, path):
    runtime = pytest.importorskip("onnxruntime")
    model.to_onnx(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", ARCHITECTURES)
def test_onnx_runtime_predicts_the_same(layers, dtype, tmp_path):
    model = network(layers(), dtype)
    session = onnx_session(model, tmp_path / "model.onnx")
    for n in (33, 1):
        X = rows(model, n)
        # ONNX has the eps of a normalisation as a number of float32.
        close(session.run(["output"], {"input": X})[0], model.predict(X), of_float64=1e-8)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_onnx_runtime_has_every_activation(name, tmp_path):
    activation = LAYERS[name]
    model = network([fastbp.Linear(5, 5), activation(), fastbp.Linear(5, 5), activation()])
    X = 4 * rows(model)
    close(onnx_session(model, tmp_path / "model.onnx").run(None, {"input": X})[0], model.predict(X))


def test_parameters_of_activations_are_in_the_onnx_file(tmp_path):
    layers = fastbp.Linear(5, 5), fastbp.LeakyReLU(0.3), fastbp.ELU(0.7), fastbp.GELU("tanh")
    model = network(layers)
    X = 4 * rows(model)
    close(onnx_session(model, tmp_path / "model.onnx").run(None, {"input": X})[0], model.predict(X))


def test_what_an_onnx_file_says_of_itself(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = network(residual())
    model.to_onnx(tmp_path / "model.onnx")
    content = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(content, full_check=True)
    assert [(opset.domain, opset.version) for opset in content.opset_import] == [("", 20)]
    assert {array.name for array in content.graph.initializer} == set(model.state_dict())
    ends = [*content.graph.input, *content.graph.output]
    shapes = [[size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim] for end in ends]
    assert [(end.name, shape) for end, shape in zip(ends, shapes, strict=True)] == [
        ("input", ["rows", 6]),
        ("output", ["rows", 6]),
    ]
    assert not any(node.op_type == "Dropout" for node in content.graph.node)


def test_a_network_on_a_device_is_exported_as_on_the_host(device, tmp_path):
    model = network(residual(), device=device)
    model.to_onnx(tmp_path / "there.onnx")
    model.to_c(tmp_path / "network.h")
    there = (tmp_path / "there.onnx").read_bytes(), (tmp_path / "network.h").read_text()
    model = network(residual())
    model.to_onnx(tmp_path / "here.onnx")
    model.to_c(tmp_path / "network.h")
    here = (tmp_path / "here.onnx").read_bytes(), (tmp_path / "network.h").read_text()
    assert there[0] == here[0]
    assert there[1].replace(f'device="{device}"', 'device="cpu"') == here[1]


# -------------------------------------------------------------------------------------------- C
PROGRAM = """
#include "{header}"
#include "{header}"
void predict_rows(const {name}_real *x, int n, {name}_real *y);
void predict_rows(const {name}_real *x, int n, {name}_real *y)
{{
    int i;
    for (i = 0; i < n; ++i)
        {name}_predict(x + i * {name}_INPUTS, y + i * {name}_OUTPUTS);
}}
"""


def compiled(model, folder, name="network"):
    """The header, and its prediction of rows as a function of Python."""
    header = folder / f"{name}.h"
    model.to_c(header)
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(PROGRAM.format(header=header.name, name=name))
    command = [CC, *FLAGS, "-shared", "-fPIC", source, "-o", library, "-lm"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert process.returncode == 0, process.stderr
    function = ctypes.CDLL(str(library)).predict_rows
    real = ctypes.POINTER(ctypes.c_float if model.dtype == np.float32 else ctypes.c_double)

    def predict(X):
        out = np.full((len(X), model.out_features), np.nan, model.dtype)
        function(X.ctypes.data_as(real), len(X), out.ctypes.data_as(real))
        return out

    return header.read_text(), predict


needs_cc = pytest.mark.skipif(CC is None, reason="needs a C compiler, cc")


@needs_cc
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", ARCHITECTURES)
def test_c_predicts_the_same(layers, dtype, tmp_path):
    model = network(layers(), dtype)
    text, predict = compiled(model, tmp_path)
    X = rows(model)
    close(predict(X), model.predict(X))
    assert "alloc" not in text.replace("allocates nothing", "")
    assert text.count("#include") == text.count("#include <math.h>") == 1


@needs_cc
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_c_has_every_activation(dtype, tmp_path):
    activations = [LAYERS[name]() for name in ACTIVATIONS]
    activations += [fastbp.GELU("tanh"), fastbp.LeakyReLU(0.3), fastbp.ELU(0.7)]
    for i, activation in enumerate(activations):
        model = network([fastbp.Linear(4, 4), activation, fastbp.Linear(4, 4), activation], dtype)
        _, predict = compiled(model, tmp_path, f"network_{i}")
        X = 4 * rows(model)
        close(predict(X), model.predict(X))


@needs_cc
def test_c_activations_of_large_numbers(tmp_path):
    """No overflow on the way: what is 0 or z itself far out is that."""
    large = np.array([[-1e30], [-1e4], [-100.0], [-30.0], [30.0], [100.0], [1e4], [1e30]], np.float32)
    for i, name in enumerate(ACTIVATIONS):
        layer = fastbp.Linear(1, 1)
        layer.weight, layer.bias = [[1.0]], [0.0]
        model = Sequential(layer, LAYERS[name]())
        _, predict = compiled(model, tmp_path, f"large_{i}")
        np.testing.assert_allclose(predict(large), model.predict(large), rtol=1e-5, atol=1e-12, err_msg=name)


@needs_cc
def test_two_headers_in_one_program_and_little_scratch(tmp_path):
    """Names begin with that of the network; a place is used again when nothing reads it any more."""
    chain = [part for _ in range(8) for part in (fastbp.Linear(10, 10), fastbp.LayerNorm(10), fastbp.ReLU())]
    chain = network([*chain, fastbp.Linear(10, 1)])
    chain.to_c(tmp_path / "a.h")
    network(residual()).to_c(tmp_path / "b.h", name="other")
    assert "#define a_SCRATCH 20 " in (tmp_path / "a.h").read_text()
    source = tmp_path / "both.c"
    source.write_text(
        '#include "a.h"\n#include "b.h"\n#include <stdio.h>\nint main(void)\n{\n'
        "    float x[a_INPUTS] = {0.0f}, y[a_OUTPUTS], z[other_OUTPUTS];\n    a_predict(x, y);\n"
        '    other_predict(x, z);\n    printf("%.9g", (double)(y[0] + z[5]));\n    return 0;\n}\n'
    )
    subprocess.run([CC, *FLAGS, source, "-o", tmp_path / "both", "-lm"], check=True, cwd=tmp_path)
    printed = float(subprocess.run([tmp_path / "both"], capture_output=True, text=True, check=True).stdout)
    expected = chain.predict(np.zeros((1, 10)))[0, 0] + network(residual()).predict(np.zeros((1, 6)))[0, 5]
    assert printed == pytest.approx(float(expected), rel=1e-5)


def test_what_cannot_be_a_header(tmp_path):
    model = network(single())
    for name in ("my-model.h", "2.h"):
        with pytest.raises(ValueError, match="name must begin a name of C"):
            model.to_c(tmp_path / name)
    with pytest.raises(ValueError, match="name must begin a name of C"):
        model.to_c(tmp_path / "model.h", name="a b")
    model[0].bias[1] = np.inf
    with pytest.raises(ValueError, match="all parameters must be finite"):
        model.to_c(tmp_path / "model.h")
    assert not list(tmp_path.iterdir())


def test_numbers_of_a_header_are_those_of_the_network(tmp_path):
    model = network([fastbp.Linear(2, 3)], "float64")
    model[0].weight = [[0.1, -1e-300, 1 / 3], [0.0, 5e-324, 1.7976931348623157e308]]
    model.to_c(tmp_path / "model.h")
    text = (tmp_path / "model.h").read_text()
    numbers = text.split("model_weight_0[2 * 3] = {")[1].split("};")[0].split(",")
    np.testing.assert_array_equal([float(number) for number in numbers], model[0].weight.ravel())
