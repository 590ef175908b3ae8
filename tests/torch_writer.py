"""A writer of PyTorch files, from the format alone."""

import argparse
import collections
import io
import pickle
import zipfile

import numpy as np

STORAGES = {
    **dict(float64="DoubleStorage", float32="FloatStorage", float16="HalfStorage"),
    **dict(bfloat16="BFloat16Storage", int64="LongStorage", int32="IntStorage"),
    **dict(int16="ShortStorage", int8="CharStorage", uint8="ByteStorage", bool="BoolStorage"),
}


class Global:
    """Pickled as a bare name, whether or not such a module is installed."""

    def __init__(self, module, name):
        self.line = f"c{module}\n{name}\n".encode()

    def __call__(self):
        raise AssertionError("only ever written")


class Tensor:
    """A view of a flat NumPy storage, in elements."""

    def __init__(self, storage, offset=0, size=None, stride=(1,), rebuild="_rebuild_tensor_v2"):
        size = tuple(storage.shape if size is None else size)
        self.call = Global("torch._utils", rebuild)
        self.args = (storage, offset, size, tuple(stride), False, collections.OrderedDict())

    def __reduce__(self):
        return self.call, self.args


def dense(array):
    stride = [step // array.itemsize for step in array.strides]
    return Tensor(array.reshape(-1), 0, array.shape, stride)


def write_name(writer, name):
    writer.write(name.line)


class Writer(pickle._Pickler):  # the one in Python, which can be taught a new kind
    dispatch = {  # noqa: RUF012 (the attribute pickle looks for)
        **pickle._Pickler.dispatch,
        Global: write_name,
    }

    def __init__(self, stream):
        super().__init__(stream, protocol=2)
        self.storages = []

    def persistent_id(self, value):
        if not isinstance(value, np.ndarray):
            return None
        if not any(value is known for known in self.storages):
            self.storages.append(value)
        key = next(str(i) for i, known in enumerate(self.storages) if value is known)
        return "storage", Global("torch", STORAGES[value.dtype.name]), key, "cpu", value.size


def save(path, tree, **changed):
    """Writes a file of `torch.save`; `changed` are other contents of its parts, None leaves out."""
    content = io.BytesIO()
    writer = Writer(content)
    writer.dump(tree)
    files = {"data.pkl": content.getvalue(), "byteorder": b"little"}
    files |= {f"data/{key}": storage.tobytes() for key, storage in enumerate(writer.storages)}
    files |= {"version": b"3\n", ".data/serialization_id": b"0123"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | changed).items():
            if data is not None:
                archive.writestr(f"run/{name}", data)
    return path


def released(weights):
    """The outer dict of a released file."""
    moment = Tensor(np.full(3, 9.0, np.float32))
    return {
        "model": collections.OrderedDict(weights),
        "optimizer": {"state": {0: {"step": 7, "exp_avg": moment}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=1e-3, device=Odd()),
    }


class Odd:
    """A class of its own, with state, that no reader can know."""

    def __init__(self):
        self.text = "state"
