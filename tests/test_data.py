"""Data loaders: IDX files from a folder or fetched, and tables of the user's own."""

import gzip
import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest

from pyrovi import data, idx
from pyrovi.errors import DataError, SettingsError

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def as_idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(autouse=True)
def no_folder_of_my_own(monkeypatch):
    monkeypatch.delenv(idx.ENVIRONMENT, raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(as_idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(as_idx(LABELS)))
    return tmp_path


def test_a_folder_of_files_plain_or_compressed(folder):
    images, labels = data.mnist(folder=folder)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    images[0] = 0  # the caller's own
    assert data.mnist(folder=str(folder)).images.any()


def test_the_environment_names_a_folder_of_folders(folder, monkeypatch):
    root = folder.parent / "sets"
    root.mkdir()
    folder.rename(root / "fashion_mnist")
    monkeypatch.setenv(idx.ENVIRONMENT, str(root))
    assert np.array_equal(data.fashion_mnist().labels, LABELS)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
@pytest.mark.parametrize(("split", "n", "first"), [("train", 60_000, [5, 0, 4, 1, 9]), ("test", 10_000, [7, 2, 1, 0, 4])])
def test_mnist_itself(split, n, first):
    images, labels = data.mnist(split, MNIST)
    assert images.shape == (n, 28, 28)
    assert labels.shape == (n,)
    assert labels[:5].tolist() == first
    assert np.unique(labels).tolist() == list(range(10))
    if split == "train":
        assert images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)  # as every tutorial normalises it


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "begins with nothing"),
        (b"PK\x03\x04 a zip", "not an IDX file of unsigned bytes: it begins with 50 4b 03 04"),
        (as_idx(IMAGES)[:-1], r"damaged: it says shape \(5, 28, 28\) and holds 3,919 values"),
        (as_idx(IMAGES) + b"\0", "holds 3,921 values"),
        (as_idx(IMAGES)[:9], "is damaged"),
        (gzip.compress(as_idx(IMAGES))[:-20], "cannot be read"),
        (as_idx(IMAGES[:, :4]), r"shape \(5, 4, 28\), not images"),
        (as_idx(LABELS), r"shape \(5,\), not images"),
        (as_idx(IMAGES[:4]), "not a label for each of 4 images"),
    ],
)
def test_a_damaged_file_is_named(folder, content, sentence):
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=sentence) as raised:
        data.mnist(folder=folder)
    assert "train-" in str(raised.value)


def test_a_folder_without_the_files_is_told_which(folder):
    with pytest.raises(DataError, match="has no t10k-images-idx3-ubyte, with or without .gz; give the folder of MNIST's files"):
        data.mnist("test", folder)
    with pytest.raises(SettingsError, match="did you mean 'train'"):
        data.mnist("trian", folder)


@pytest.fixture
def server(folder, monkeypatch):
    """Two mirrors on this machine, of which the first has nothing."""
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(as_idx(IMAGES)))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{running.server_port}/"
        sums = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.gz")}
        monkeypatch.setitem(idx.SOURCES, "mnist", idx.Source("MNIST", (f"{root}nothing/", root), sums))
        yield asked
        running.shutdown()


def test_fetched_once_from_the_first_mirror_that_has_it(server, monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("user")
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache / name)
    for _ in range(2):
        images, labels = data.mnist()
        assert np.array_equal(images, IMAGES)
        assert np.array_equal(labels, LABELS)
    assert server == [
        "/nothing/train-images-idx3-ubyte.gz",
        "/train-images-idx3-ubyte.gz",
        "/nothing/train-labels-idx1-ubyte.gz",
        "/train-labels-idx1-ubyte.gz",
    ]
    assert (cache / "pyrovi" / "mnist" / "train-images-idx3-ubyte.gz").is_file()


def test_what_cannot_be_fetched_says_both_ways_out(server, monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("user")
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache / name)
    monkeypatch.setitem(idx.SOURCES["mnist"].sha256, "train-images-idx3-ubyte.gz", "0" * 64)
    with pytest.raises(DataError) as raised:
        data.mnist()
    sentence = str(raised.value)
    for part in ("train-images-idx3-ubyte.gz of MNIST", "HTTPError", "ValueError", "folder=", "PYROVI_DATA", "'mnist'"):
        assert part in sentence
    assert not list(cache.rglob("train-images*"))  # a file with the wrong sum is not kept


FRAME = pd.DataFrame({"area": [20.0, 30.0, 45.0], "floor": [1, 0, 3], "lift": [True, False, True], "rent": [400, 500, 700]})


def test_a_table_is_standardised_and_knows_the_way_back(tmp_path):
    FRAME.to_csv(tmp_path / "rooms.csv", index=False)
    for source in (FRAME, tmp_path / "rooms.csv", str(tmp_path / "rooms.csv")):
        X, y, features, scaling = data.table(source, outcome="rent")
        assert features == ["area", "floor", "lift"]
        assert np.allclose(X.mean(0), 0)
        assert np.allclose(X.std(0), 1)
        assert np.allclose(scaling.restore(y), FRAME["rent"])
        assert np.allclose(scaling.restore_sd(y.std()), FRAME["rent"].std(ddof=0))
        assert np.allclose(scaling.transform(FRAME), X)  # by name, whatever else is there
        assert np.allclose(scaling.transform(FRAME[features].to_numpy(float)), X)


def test_some_columns_as_they_are():
    X, y, features, scaling = data.table(FRAME, "rent", ["floor", "area"], standardised=False)
    assert features == ["floor", "area"]
    assert np.array_equal(X, FRAME[["floor", "area"]])
    assert np.array_equal(scaling.restore(y), FRAME["rent"])
    assert np.array_equal(scaling.transform(FRAME), X)


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        ({}, {"outcome": "rnet"}, "no column 'rnet'; did you mean 'rent'"),
        ({}, {"features": ["areas"]}, "no column 'areas'; did you mean 'area'"),
        ({}, {"features": ["rent"]}, "'rent' is the outcome and among the features"),
        ({}, {"features": "area"}, "features must be a list"),
        ({}, {"features": []}, "at least one"),
        ({"area": [20.0, None, None]}, {}, "column 'area' has 2 missing values, the first in row 2; drop those rows"),
        ({"rent": [1.0, 2.0, np.nan]}, {}, "column 'rent' has 1 missing value, the first in row 3"),
        ({"area": ["big", "small", "big"]}, {}, "column 'area' holds .* values such as 'big', not numbers"),
        ({"area": pd.Categorical([1, 2, 1])}, {}, "column 'area' holds category values"),
        ({"area": [1.0, np.inf, 2.0]}, {}, "column 'area' has infinite values"),
        ({"floor": [2, 2, 2]}, {}, "column 'floor' has the same value in every row"),
        ({"rent": [2, 2, 2]}, {}, "column 'rent' has the same value in every row"),
    ],
)
def test_one_sentence_for_a_bad_table(change, arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        data.table(FRAME.assign(**change), **{"outcome": "rent", **arguments})


def test_one_sentence_for_a_bad_source(tmp_path):
    with pytest.raises(DataError, match="there is no data file"):
        data.table(tmp_path / "none.csv", "y")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="not a table with a line a row"):
        data.table(tmp_path / "odd.csv", "b")
    (tmp_path / "twice.csv").write_text("")
    with pytest.raises(DataError, match="not a table"):
        data.table(tmp_path / "twice.csv", "b")
    with pytest.raises(DataError, match="a CSV file or a DataFrame; got list"):
        data.table([[1, 2]], "b")
    with pytest.raises(DataError, match="two columns named 'a'"):
        data.table(pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"]), "b")
    with pytest.raises(DataError, match="has 1 rows"):
        data.table(FRAME[:1], "rent")
    scaling = data.table(FRAME, "rent").scaling
    with pytest.raises(DataError, match=r"shape \(m, 3\)"):
        scaling.transform([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="no column 'lift'"):
        scaling.transform(FRAME[["area", "floor"]])
