"""Arrays of other libraries on the GPU, used where they are, and ours for them: DLPack, streams, lifetimes.

Runs on a GPU, and without one in the simulator, where test_simulator.py starts it: memory of its "GPU" is of the host.
"""

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp.kernels import cuda, exchange

borrowing, driver, memory, streams = cuda.borrowing, cuda.driver, cuda.memory, cuda.streams
pytestmark = pytest.mark.skipif(
    not driver.cuda.is_available(), reason="needs a GPU; test_simulator.py runs it without one"
)

HERE = borrowing._device_number() if driver.cuda.is_available() else 0
LOSS = fastbp.CrossEntropyLoss()
READ_ONLY, COPIED = 1, 2


# ------------------------------------------------------------------------------------ hand-made capsules
class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class Unversioned(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
KEPT = []  # every tensor, deleter and memory given, as a library keeps them until the deleter has run
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


def deleter_of(tensor, deleted):
    """A deleter that notes on which device the tensor was."""
    return DELETER(lambda _: deleted.append(tensor.device_type))


class Lent:
    """An array of another library on the GPU, which offers DLPack only."""

    def __init__(self, array, *, version=(1, 0), device=(exchange.CUDA, HERE), offset=0, flags=0, **fields):
        self.array = array if hasattr(array, "__cuda_ndarray__") else cuda.to_device(array)
        self.version, self.device, self.offset, self.flags, self.fields = version, device, offset, flags, fields
        self.asked, self.deleted = [], []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.asked.append(stream)
        array, n = self.array, len(self.array.shape)
        itemsize = array.dtype.itemsize
        tensor = Tensor(
            data=borrowing.address(array) - self.offset, device_type=self.device[0], device_id=self.device[1], ndim=n,
            code=CODES[array.dtype.kind], bits=8 * itemsize, lanes=1, shape=(ctypes.c_int64 * n)(*array.shape),
            strides=(ctypes.c_int64 * n)(*(stride // itemsize for stride in array.strides)), byte_offset=self.offset,
        )  # fmt: skip
        for name, value in self.fields.items():
            setattr(tensor, name, value)
        if self.version is None:
            self.managed = Unversioned(tensor=tensor)
        else:
            self.managed = Versioned(*self.version, flags=self.flags, tensor=tensor)
        self.managed.deleter = deleter_of(self.managed.tensor, self.deleted)
        KEPT.append((self.managed, array))
        name = b"dltensor" if self.version is None else b"dltensor_versioned"
        return new_capsule(ctypes.addressof(self.managed), name, None)


class LentBeforeVersions(Lent):
    def __dlpack__(self, *, stream=None):
        return super().__dlpack__(stream=stream)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((7, 5), dtype=np.float32)


def network():
    layers = fastbp.Linear(5, 6), fastbp.ReLU(), fastbp.Linear(6, 3)
    return fastbp.Sequential(*layers, device="cuda", seed=1)


def values(array):
    return memory.to_host(array)


# ----------------------------------------------------------------------------------------------- ours
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[2:],
        lambda x: x[1:6:2],
        lambda x: x[::7],  # one row: it is contiguous
        lambda x: x[-2:, ::2],
        lambda x: x[3],
        lambda x: x[5:3],
        lambda x: x.reshape(5, 7),
        lambda x: x.reshape(35)[3:9],
        lambda x: x[2:4].reshape(10).view(np.int16),
    ],
)
def test_views_are_those_of_numpy(x, view):
    expected, array = view(x), view(cuda.to_device(x))
    assert (tuple(array.shape), array.dtype) == (expected.shape, expected.dtype)
    assert (array.size, len(array)) == (expected.size, len(expected))
    assert array.is_c_contiguous() == expected.flags.c_contiguous
    assert (values(array) == expected).all()


@pytest.mark.skipif(driver.simulated, reason="arrays of the simulator are Numba's")
def test_what_is_no_view_of_an_array(x):
    array = cuda.to_device(x)
    for wrong in (lambda: array[::-1], lambda: array[0, 0, 0], lambda: array[7]):
        with pytest.raises(IndexError):
            wrong()
    for wrong in (lambda: array.reshape(5, 6), lambda: array[:, :3].reshape(21), lambda: array.view(np.float64)):
        with pytest.raises(ValueError, match="an array of"):
            wrong()
    for other in (x[:3], x.astype(np.float64), array[:, :5:2]):
        with pytest.raises(ValueError, match="arrays of one shape and dtype are copied"):
            array.copy_to_device(other, streams.stream())
    with pytest.raises(AttributeError, match="no attribute 'addresses'"):
        array.addresses  # noqa: B018


def test_numba_lends_its_arrays(x):
    lent = driver.cuda.to_device(x)
    assert network().predict(lent).tobytes() == network().predict(x).tobytes()
    assert np.asarray(network().predict(lent, to_host=False)).tobytes() == network().predict(x).tobytes()


# ---------------------------------------------------------------------------------------------- taken
@pytest.mark.parametrize("kind", [Lent, LentBeforeVersions])
@pytest.mark.parametrize("version", [None, (1, 0), (1, 3)])
def test_memory_is_used_where_it_is(x, kind, version):
    lent = kind(x, version=version)
    array = borrowing.as_device_array(lent)
    assert borrowing.is_on_device(lent)
    assert borrowing.address(array) == borrowing.address(lent.array)
    assert (tuple(array.shape), array.dtype, tuple(array.strides)) == (x.shape, x.dtype, x.strides)
    assert (values(array) == x).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", "float64"])
def test_dtypes(dtype):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    array = borrowing.as_device_array(Lent(x))
    assert array.dtype == x.dtype
    assert (values(array) == x).all()


def test_offsets_strides_and_what_is_left_out(x):
    whole = cuda.to_device(x)
    rows = memory.window(whole, 20, (3, 5), (40, 4), x.dtype)  # every other row from the second on
    array = borrowing.as_device_array(Lent(rows, offset=8))
    assert borrowing.address(array) == borrowing.address(whole) + 20
    assert (values(array) == x[1:7:2]).all()
    contiguous = borrowing.as_device_array(Lent(x, strides=None))
    assert tuple(contiguous.strides) == x.strides
    assert borrowing.as_device_array(Lent(np.zeros((0, 5), "f4"), data=None)).shape == (0, 5)


@pytest.mark.parametrize("kind", [exchange.CUDA, exchange.CUDA_MANAGED])
def test_models_take_them(x, kind):
    y = np.arange(7) % 3
    lent = Lent(x, flags=READ_ONLY, device=(kind, HERE)), Lent(y, device=(kind, HERE))
    models = [network(), network()]
    results = []
    for model, pair in zip(models, ((x, y), lent), strict=True):
        options = {"optimizer": fastbp.SGD(lr=0.1), "epochs": 1, "batch_size": 3, "verbose": False}
        history = model.fit(*pair, loss=LOSS, validation_data=pair, **options)
        step = model.train_step(*pair, LOSS, fastbp.SGD(lr=0.1))
        results.append((history[0]["loss"], history[0]["val_loss"], step, model(pair[0]).tobytes()))
        results[-1] += model.predict(pair[0]).tobytes(), values(model.predict(pair[0], to_host=False)).tobytes()
    assert results[0] == results[1]


def test_the_other_library_is_told_our_stream(x, monkeypatch):
    class Stream(int):
        def synchronize(self):
            pass

    if driver.simulated:
        monkeypatch.setattr(streams, "stream", lambda: Stream(4242))
    lent = Lent(x)
    borrowing.as_device_array(lent)
    assert lent.asked == [int(streams.stream())]
    assert lent.asked[0] > 2


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_memory_is_given_back_when_launches_have_finished(x, version, monkeypatch):
    gc.collect()  # what other tests have left
    lent = Lent(x, version=version)
    events = lent.deleted
    monkeypatch.setattr(streams, "wait_for_all", lambda: events.append("launches finished"))
    array = borrowing.as_device_array(lent)
    row = memory.flat(memory.window(array, 20, (5,), (4,), x.dtype))
    del array
    gc.collect()
    assert events == []  # a window is still there
    del row
    gc.collect()
    assert events == ["launches finished", exchange.CUDA]  # once, and the deleter saw its own device


def test_what_cannot_be_used_says_why(x):
    model = network()
    other = Lent(x, device=(exchange.CUDA, HERE + 1))
    with pytest.raises(ValueError, match=rf"X: expected an array on GPU {HERE}, .* got .*Lent on GPU {HERE + 1}; copy"):
        model.predict(other)
    assert other.asked == []
    for fields in ({"lanes": 2}, {"code": 4, "bits": 16}, {"code": 3}):
        lent = Lent(x, **fields)
        with pytest.raises(TypeError, match=r"X: .*Lent cannot be used where it is on the GPU: "):
            model.predict(lent)
        assert lent.managed.tensor.device_type == exchange.CUDA
    for array in (x.astype("c8"), x.reshape(7, 5, 1), x[:, :4]):
        with pytest.raises((TypeError, ValueError), match="X must"):
            model.predict(Lent(array))
    capsule = Lent(x).__dlpack__()
    once = SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (exchange.CUDA, HERE))
    first = borrowing.as_device_array(once)
    with pytest.raises(TypeError, match="no capsule of DLPack, or one that is used already"):
        model.predict(once)
    del first
    later = Lent(x, version=(2, 0))
    with pytest.raises(TypeError, match="Lent cannot be used"):
        model.predict(later)
    assert later.managed.tensor.device_type == exchange.CUDA

    class Refuses(Lent):
        def __dlpack__(self, **_):
            raise BufferError("needs gradients")

    with pytest.raises(TypeError, match="Refuses cannot be used where it is on the GPU: needs gradients"):
        model.predict(Refuses(x))
    with pytest.raises(TypeError, match="must be in the memory of the host here, got a Lent on the GPU"):
        fastbp.Sequential(fastbp.Linear(5, 3)).predict(Lent(x))


def test_arrays_of_the_host_stay_there(x):
    class OnHost(Lent):
        def __array__(self, dtype=None, copy=None):
            return values(self.array)

    for other in (x, OnHost(x, device=(1, 0)), OnHost(x, device=(3, 0))):
        assert not borrowing.is_on_device(other)
        assert network().predict(other).tobytes() == network().predict(x).tobytes()


# ---------------------------------------------------------------------------------------------- given
def capsule_of(array, **options):
    """The managed tensor of a capsule of ours, and the capsule, which keeps it alive."""
    capsule = array.__dlpack__(**options)
    kind = Versioned if "versioned" in str(capsule) else Unversioned
    return kind.from_address(exchange._pointer(capsule, str(capsule).split('"')[1].encode())), capsule


@pytest.mark.parametrize(
    ("version", "kind"), [(None, Unversioned), ((0, 8), Unversioned), ((1, 0), Versioned), ((1, 3), Versioned)]
)
def test_what_predict_leaves_on_the_gpu_offers_dlpack(x, version, kind):
    prediction = network().predict(x, to_host=False)
    managed, capsule = capsule_of(prediction, max_version=version)
    tensor = managed.tensor
    assert type(managed) is kind
    assert (tensor.device_type, tensor.device_id) == borrowing.device() == prediction.__dlpack_device__()
    assert tensor.data + tensor.byte_offset == borrowing.address(prediction)
    assert (tensor.ndim, tensor.shape[:2], tensor.code, tensor.bits, tensor.lanes) == (2, [7, 3], 2, 32, 1)
    assert kind is Unversioned or (managed.major, managed.flags) == (1, 0)
    del capsule
    view = exchange.taken(prediction, None if driver.simulated else int(streams.stream()))
    assert (view.ctypes.data, view.shape, view.dtype) == (borrowing.address(prediction), (7, 3), np.float32)
    assert (network().predict(x) == values(prediction)).all()


def test_the_device_in_a_capsule_is_ours(x, monkeypatch):
    monkeypatch.setattr(borrowing, "device", lambda: (exchange.CUDA, 3))
    array = cuda.to_device(x)
    for version in (None, (1, 0)):
        managed, _ = capsule_of(array, max_version=version)
        assert (managed.tensor.device_type, managed.tensor.device_id) == (exchange.CUDA, 3)


def test_no_rows():
    managed, _ = capsule_of(network().predict(np.zeros((0, 5), "f4"), to_host=False))
    assert (managed.tensor.data, managed.tensor.shape[:2]) == (None, [0, 3])


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("consumed", [False, True])
def test_offered_memory_lives_as_long_as_its_consumer(x, version, consumed):
    prediction = network().predict(x, to_host=False)
    expected, alive = values(prediction), weakref.ref(prediction)
    held = prediction.__dlpack__(max_version=version)
    if consumed:
        capsule = held
        held = exchange.taken(SimpleNamespace(__dlpack__=lambda **_: capsule), None)
        del capsule
    del prediction
    gc.collect()
    assert alive() is not None
    if consumed and driver.simulated:
        assert (held == expected).all()
    del held
    gc.collect()
    assert alive() is None


def test_copies(x):
    array = cuda.to_device(x)
    for version in (None, (1, 0)):
        managed, capsule = capsule_of(array, copy=True, max_version=version)
        assert managed.tensor.data != borrowing.address(array)
        assert version is None or managed.flags == COPIED
        del capsule
    managed, _ = capsule_of(array, copy=False, max_version=(1, 0), dl_device=borrowing.device())
    assert (managed.tensor.data, managed.flags) == (borrowing.address(array), 0)
    with pytest.raises(BufferError, match=r"dl_device must be .* got \(8, 0\)"):
        array.__dlpack__(dl_device=(8, 0))
    if not driver.simulated:
        managed, _ = capsule_of(array, dl_device=(1, 0), max_version=(1, 0))
        assert (managed.tensor.device_type, managed.flags) == (1, COPIED)
        with pytest.raises(BufferError, match="copy=False"):
            array.__dlpack__(dl_device=(1, 0), copy=False)


def test_consumers_wait_for_our_launches(x, monkeypatch):
    array, calls = cuda.to_device(x), []
    for wrong in (0, -2, "1", 1.0):
        with pytest.raises(ValueError, match="stream must be None, -1, 1, 2 or the handle"):
            array.__dlpack__(stream=wrong)
    driver_calls = SimpleNamespace(cuStreamWaitEvent=lambda *given: calls.append(given) or (0,))
    monkeypatch.setattr(streams, "simulated", False)
    monkeypatch.setattr(streams, "stream", lambda: "ours")
    monkeypatch.setattr(streams, "mark", lambda of: SimpleNamespace(core=SimpleNamespace(handle=f"end of {of}")))
    monkeypatch.setattr(streams, "called", lambda answer: None, raising=False)
    monkeypatch.setattr(streams, "driver_calls", driver_calls, raising=False)
    for asked, waits in ((None, 1), (1, 1), (2, 2), (4242, 4242)):
        streams.let_follow(asked)
        assert calls == [(waits, "end of ours", 0)]
        calls.clear()
    streams.let_follow(-1)
    assert calls == []


@pytest.mark.parametrize("library", ["torch", "jax.dlpack"])
def test_other_libraries_read_predictions(x, library):
    from_dlpack = pytest.importorskip(library).from_dlpack
    prediction = network().predict(x, to_host=False)
    try:
        tensor = from_dlpack(prediction)
    except (AssertionError, RuntimeError) as error:
        pytest.skip(f"{library} sees no GPU: {error}")
    del prediction
    there = np.asarray(tensor.cpu() if library == "torch" else tensor)
    assert (there == network().predict(x)).all()


@pytest.mark.skipif(driver.simulated, reason="the simulator has no streams")
def test_the_cuda_array_interface_names_our_stream(x):
    prediction = network().predict(x, to_host=False)
    interface = prediction.__cuda_array_interface__
    assert (interface["stream"], interface["data"][0]) == (int(streams.stream()), borrowing.address(prediction))
    lent = SimpleNamespace(__cuda_array_interface__=interface)
    assert (values(borrowing.as_device_array(lent)) == values(prediction)).all()
