"""Networks from PyTorch and back: the layout, by square matrices that are not symmetric, and the same outputs."""

import numpy as np
import pytest

import fastbp
from fastbp.layers import LAYERS
from fastbp.pytorch import FIXED, READERS

SQUARE = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]])  # (out, in), as PyTorch has it
BIAS = np.array([0.5, -0.25, 1.0])


def fake(name, *parts, **attributes):
    """A stand-in for a module of ``torch.nn`` of this name."""
    module = type(name, (list,), {"training": True})(parts)
    module.__dict__.update(attributes)
    return module


def fake_linear(weight, bias=None):
    return fake("Linear", in_features=weight.shape[1], out_features=weight.shape[0], weight=weight, bias=bias)


def test_a_square_matrix_is_transposed():
    model = fastbp.from_torch(fake("Sequential", fake_linear(SQUARE, BIAS)))
    np.testing.assert_array_equal(model[0].weight, SQUARE.T)
    x = np.array([[1.0, -2.0, 0.5]])
    np.testing.assert_array_equal(model.predict(x), x @ SQUARE.T + BIAS)
    state = model.to_torch_state_dict()
    assert list(state) == ["0.weight", "0.bias"]
    np.testing.assert_array_equal(state["0.weight"], SQUARE)
    np.testing.assert_array_equal(state["0.bias"], BIAS)
    assert all(array.flags.c_contiguous and array.flags.owndata for array in state.values())


def test_parameters_are_copies():
    weight = SQUARE.copy()
    model = fastbp.from_torch(fake("Sequential", fake_linear(weight)))
    model.to_torch_state_dict()["0.weight"][:] = 0
    weight[:] = 0
    np.testing.assert_array_equal(model[0].weight, SQUARE.T)


def test_layers_keep_their_arguments_and_places():
    inner = fake("Sequential", fake("GELU", approximate="tanh"), fake_linear(SQUARE[:2], BIAS[:2]))
    parts = fake("LeakyReLU", negative_slope=0.2), fake_linear(SQUARE), fake("ELU", alpha=0.5), fake("Dropout", p=0.25)
    model = fastbp.from_torch(fake("Sequential", *parts, inner, fake("Mish", inplace=True)), seed=3)
    assert [repr(layer) for layer in model.layers] == [
        "LeakyReLU(negative_slope=0.2)",
        "Linear(in_features=3, out_features=3, bias=False)",
        "ELU(alpha=0.5)",
        "Dropout(p=0.25)",
        "GELU(approximate='tanh')",
        "Linear(in_features=3, out_features=2, bias=True)",
        "Mish()",
    ]
    assert list(model.to_torch_state_dict()) == ["1.weight", "5.weight", "5.bias"]


@pytest.mark.parametrize(("given", "dtype"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_dtype_and_mode(given, dtype):
    module = fake("Sequential", fake_linear(SQUARE.astype(given)), training=False)
    model = fastbp.from_torch(module)
    assert model.dtype == dtype
    assert not model.training
    assert fastbp.from_torch(module, dtype="float64", device="reference").dtype == "float64"


def linear():
    return fake_linear(SQUARE)


SHARED = linear()


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (linear(), TypeError, "must be a torch.nn.Sequential, got Linear"),
        (fake("Sequential", linear(), fake("GroupNorm")), TypeError, "has a GroupNorm, known are BatchNorm1d"),
        (fake("Sequential", linear(), fake("Softmax")), TypeError, "leave it out: CrossEntropyLoss"),
        (fake("Sequential", fake("Flatten"), linear()), TypeError, "leave it out, and pass rows that are flat"),
        (fake("Sequential", linear(), fake("Softplus", beta=2)), ValueError, "Softplus must have beta=1, got 2"),
        (
            fake("Sequential", linear(), fake("Softplus", beta=1, threshold=1.0)),
            ValueError,
            "Softplus must have threshold of 20 or more, got 1.0",
        ),
        (fake("Sequential", SHARED, fake("ReLU"), SHARED), ValueError, "the same Linear, or the same weight, twice"),
        (fake("Sequential"), ValueError, "at least one Linear"),
    ],
)
def test_refused(module, error, message):
    with pytest.raises(error, match=message):
        fastbp.from_torch(module)


def norm(name, features=3, **changes):
    arrays = {name: np.arange(1.0, features + 1) * factor for name, factor in (("weight", 2.0), ("bias", -0.5))}
    if name == "BatchNorm1d":
        arrays |= {"running_mean": np.arange(features) / 4, "running_var": np.arange(1.0, features + 1)}
        arrays |= {"num_features": features, "momentum": 0.25}
    else:
        arrays |= {"normalized_shape": (features,)}
    return fake(name, **(arrays | {"eps": 1e-3} | changes))


def test_a_norm_belongs_to_one_place():
    for shared in (norm("LayerNorm"), norm("BatchNorm1d", weight=None, bias=None)):
        block = fake("Residual", fake_linear(SQUARE.copy()), shared)
        with pytest.raises(ValueError, match=f"the same {type(shared).__name__}, or the same weight, twice"):
            fastbp.from_torch(fake("Sequential", linear(), shared, block))


def test_norms_and_residual_blocks():
    block = fake("Residual", norm("LayerNorm"), fake_linear(SQUARE.copy(), BIAS), fake("Sequential", fake("ReLU")))
    module = fake(
        "Sequential", fake_linear(SQUARE), norm("BatchNorm1d"), block, norm("LayerNorm", weight=None, bias=None)
    )
    model = fastbp.from_torch(module)
    assert [repr(layer) for layer in model.layers[1:]] == [
        "BatchNorm1d(features=3, eps=0.001, affine=True, momentum=0.25)",
        "Residual(LayerNorm(features=3, eps=0.001, affine=True), "
        "Linear(in_features=3, out_features=3, bias=True), ReLU())",
        "LayerNorm(features=3, eps=0.001, affine=False)",
    ]
    assert list(model.to_torch_state_dict()) == [
        "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.0.weight", "2.0.bias", "2.1.weight",
        "2.1.bias",
    ]  # fmt: skip
    np.testing.assert_array_equal(model[1].running_var, [1, 2, 3])
    np.testing.assert_array_equal(model[2].layers[0].bias, [-0.5, -1, -1.5])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (norm("LayerNorm", normalized_shape=(2, 3)), "over one dimension"),
        (norm("LayerNorm", bias=None), "both weight and bias"),
        (norm("BatchNorm1d", running_mean=None), "running statistics"),
        (norm("BatchNorm1d", momentum=None), "a momentum"),
    ],
)
def test_norms_that_have_no_counterpart(part, message):
    with pytest.raises(ValueError, match=message):
        fastbp.from_torch(fake("Sequential", linear(), part))


# ------------------------------------------------------------------------------ the real one
def test_norms_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        Residual(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()),
        nn.Linear(6, 3),
    ).double()
    module(torch.randn(50, 4).double())  # moves the running statistics
    model, x = fastbp.from_torch(module.eval()), np.random.default_rng(0).normal(size=(20, 4))
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-12, atol=1e-12)
    model.fit(
        x, np.arange(20) % 3, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(lr=0.1), epochs=2, verbose=False
    )
    state = {name: torch.from_numpy(array) for name, array in model.to_torch_state_dict().items()}
    assert module.load_state_dict(state, strict=True)
    np.testing.assert_allclose(model.predict(x), module(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-12)


def torch_sequential(torch, name):
    torch.manual_seed(0)
    nn = torch.nn
    activation = getattr(nn, name)()
    layers = nn.Linear(4, 4), activation, nn.Dropout(0.5), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"Linear", "Dropout", *READERS}))
def test_outputs_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    module = torch_sequential(torch, name).eval()
    x = np.random.default_rng(0).normal(scale=3, size=(20, 4))
    expected = module(torch.from_numpy(x)).detach().numpy()
    model = fastbp.from_torch(module)
    # PyTorch's Softplus is the identity above 20, where the two differ by less than 3e-9
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-12, atol=1e-8 if name in FIXED else 1e-12)


def test_state_goes_back_into_pytorch():
    torch = pytest.importorskip("torch")
    module = torch_sequential(torch, "ReLU")
    model = fastbp.from_torch(module)
    model.fit(np.eye(4), np.arange(4) % 3, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(lr=0.1), verbose=False)
    state = {name: torch.from_numpy(array) for name, array in model.to_torch_state_dict().items()}
    assert module.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).normal(size=(20, 4))
    outputs = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.predict(x), outputs, rtol=1e-12, atol=1e-12)


def test_bfloat16_that_numpy_has_not():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 3)).bfloat16()
    np.testing.assert_array_equal(fastbp.from_torch(module)[0].weight, module[0].weight.detach().float().numpy().T)


def plain(torch):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 2)))


def test_a_changed_forward_pass_is_refused():
    """A hook on any module, a forward of the object's own, a class that has only the name."""
    torch = pytest.importorskip("torch")
    assert fastbp.from_torch(plain(torch)).out_features == 2
    for place in ("", "0", "1", "1.0"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            module = plain(torch)
            handle = getattr(module.get_submodule(place), register)(lambda *_: None)
            with pytest.raises(ValueError, match="has forward hooks, which cannot be converted"):
                fastbp.from_torch(module)
            handle.remove()
            fastbp.from_torch(module)
        module = plain(torch)
        module.get_submodule(place).forward = lambda x: 2 * x
        with pytest.raises(ValueError, match="has a forward of its own"):
            fastbp.from_torch(module)
    plain(torch)[0].register_full_backward_hook(lambda *_: None)

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in (torch.nn.Sequential(Linear(3, 3)), torch.nn.Sequential(torch.nn.Sequential(Linear(3, 3)))):
        with pytest.raises(TypeError, match=r"a Linear of .*test_pytorch, which need not be PyTorch's"):
            fastbp.from_torch(module)


def test_norms_of_weights_are_refused_until_they_are_removed():
    """Between steps the weight of the old ones is what it was when the module last ran."""
    torch = pytest.importorskip("torch")
    old = torch.nn.utils.weight_norm(torch.nn.Linear(3, 3))
    with torch.no_grad():
        old.weight_g *= 2  # old.weight stays
    with pytest.raises(ValueError, match="remove_weight_norm"):
        fastbp.from_torch(torch.nn.Sequential(old))
    new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="remove_parametrizations"):
        fastbp.from_torch(torch.nn.Sequential(new))
    torch.nn.utils.remove_weight_norm(old)
    torch.nn.utils.parametrize.remove_parametrizations(new, "weight")
    for layer in (old, new):
        x, module = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), torch.nn.Sequential(layer)
        expected = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(fastbp.from_torch(module).predict(x), expected, rtol=1e-5, atol=1e-6)


def test_softplus_below_its_threshold_alone():
    torch = pytest.importorskip("torch")
    one = torch.nn.Linear(1, 1)
    with torch.no_grad():
        one.weight[:], one.bias[:] = 1.0, 0.0
    with pytest.raises(ValueError, match=r"threshold of 20 or more, got 1\.0"):
        fastbp.from_torch(torch.nn.Sequential(one, torch.nn.Softplus(threshold=1.0)))
    model = fastbp.from_torch(torch.nn.Sequential(one, torch.nn.Softplus()))
    np.testing.assert_allclose(model.predict([[1.5]]), np.log1p(np.exp(1.5)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_residual_block_that_does_not_add_is_refused(dtype):
    torch = pytest.importorskip("torch")

    class Residual(torch.nn.Sequential):
        factor = 1.0

        def forward(self, x):
            return self.factor * x + super().forward(x)

    torch.manual_seed(0)
    block = Residual(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4))
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), block, torch.nn.Linear(4, 2)).to(getattr(torch, dtype))
    block[3].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fastbp.from_torch(module)
    assert module.training
    assert block[2].training
    assert not block[3].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    block.factor = 2.0
    with pytest.raises(ValueError, match="a Residual that does not add its input"):
        fastbp.from_torch(module)
    assert module.training
