"""Images, vectors and codes as Parquet and Arrow, in and out, and through Hugging Face's data sets."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

import stochcl
from stochcl.api import archives
from stochcl.api.estimate import estimate
from stochcl.api.search import search
from stochcl.api.train import train
from stochcl.data import ArrowImages, ArrowVectors, SourceOptions, open_arrow, open_source
from stochcl.errors import ImageError, MissingExtraError, SourceError, UsageError
from tests.making import make_head

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMED = {
    b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cats", "dogs", "fische"]}}}}).encode()
}


@pytest.fixture(scope="module")
def files(images):
    """Name, bytes and class of every image."""
    paths = sorted((path for path in images.rglob("*") if path.is_file()), key=bytes)
    names = [path.relative_to(images).as_posix() for path in paths]
    classes = sorted({name.split("/")[0] for name in names})
    return [
        (name, path.read_bytes(), classes.index(name.split("/")[0])) for name, path in zip(names, paths, strict=True)
    ]


def write(path, table, rows=9):
    """Write a table as its ending says, so many rows a group."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
    else:
        with (ipc.new_file if path.suffix == ".feather" else ipc.new_stream)(path, table.schema) as out:
            out.write_table(table, max_chunksize=rows)
    return path


def image_table(files, **columns):
    given = {
        "image": pa.array([{"bytes": data, "path": name.rpartition("/")[2]} for name, data, _ in files], STRUCT),
        "label": pa.array([number for _, _, number in files], pa.int64()),
    }
    return pa.table(given | columns).replace_schema_metadata(NAMED)


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
def test_a_column_of_images_gives_the_codes_of_a_folder(files, codec, codes, tmp_path, ending):
    path = write(tmp_path / f"photos.{ending}", image_table(files))
    report = codec.compress(path, tmp_path / "a.bin", batch_size=5)
    assert report.images == 42
    with stochcl.open(tmp_path / "a.bin") as archive, stochcl.open(codes) as one:
        np.testing.assert_array_equal(archive.to_numpy(), one.to_numpy())
        assert archive.names == tuple(name.rpartition("/")[2] for name in one.names)
        assert archive.labels == tuple(label.split("/")[0].replace("fische/süß", "fische") for label in one.labels)
        assert archive.source_bytes == one.source_bytes


def test_shards_bare_bytes_and_names_of_their_own(files, codec, codes, tmp_path):
    for i in range(3):
        part = files[14 * i : 14 * (i + 1)]
        table = pa.table(
            {"jpg": pa.array([f[1] for f in part], pa.large_binary()), "name": ["/" + f[0] for f in part]}
        )
        write(tmp_path / f"p-{i:02d}-of-03.parquet", table)
    codec.compress(tmp_path / "p-{00..02}-of-03.parquet", tmp_path / "a.bin")
    with stochcl.open(tmp_path / "a.bin") as archive, stochcl.open(codes) as one:
        np.testing.assert_array_equal(archive.to_numpy(), one.to_numpy())
        assert archive.names == tuple(one.names)
        assert archive.labels == tuple(one.labels)


def test_rows_without_an_image_are_named_and_skipped(files, codec, tmp_path):
    rows = [
        {"bytes": files[0][1], "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        None,
        {"bytes": b"no", "path": None},
    ]
    path = write(tmp_path / "a.parquet", pa.table({"image": pa.array(rows, STRUCT), "label": ["x", None, "y", "z"]}))
    report = codec.compress(path, tmp_path / "a.bin")
    assert report.images == 1
    assert [name for name, _ in report.skipped] == ["b.png", "0000002", "0000003"]
    assert "no bytes of an image" in report.skipped[0][1]
    with pytest.raises(ImageError, match="strict"):
        codec.compress(path, tmp_path / "b.bin", strict=True)


def test_a_column_of_vectors_keeps_names_and_labels(tmp_path, rng):
    vectors = rng.normal(size=(50, 12)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    head = stochcl.load(make_head(tmp_path / "head.safetensors", vectors[:20]), device="cpu")
    head.compress(tmp_path / "v.npy", tmp_path / "whole.bin")
    rows = [*vectors.tolist(), None, [1.0], [np.nan] * 12]
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 12), pa.large_list(pa.float64())):
        given = rows if kind != pa.list_(pa.float32(), 12) else [*rows[:51], [0.0] * 12, rows[52]]
        table = pa.table({"id": range(53), "label": ["a", "b"] * 26 + ["a"], "v": pa.array(given, kind)})
        path = write(tmp_path / "v.parquet", table)
        report = head.compress(path, tmp_path / "a.bin", force=True)
        with stochcl.open(tmp_path / "a.bin") as archive, stochcl.open(tmp_path / "whole.bin") as whole:
            np.testing.assert_array_equal(archive.to_numpy()[:50], whole.to_numpy())
            assert archive.names[:50] == tuple(map(str, range(50)))
            assert archive.labels[:3] == ("a", "b", "a")
        assert report.skipped[0][1] == "there is no vector"
        assert "finite" in report.skipped[-1][1]
        assert report.images + len(report.skipped) == 53


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    vectors = np.random.default_rng(2).normal(size=(60, 12)).astype(np.float32)
    return stochcl.load(make_head(tmp_path_factory.mktemp("head") / "head.safetensors", vectors), device="cpu")


IDS = {
    "int64": pa.array([3, 1, 3, -7, 2**62]),
    "uint64": pa.array([0, 2**64 - 1, 1, 2, 3], pa.uint64()),
    "text": pa.array(["a/b", "/x", "../y", "s3://z", "\\w: é\n"]),
    "binary": pa.array([b"doc-1", b"\xff\x00", b"doc-2", b"doc-3", b"\x01"]),
    "uuid": pa.array([bytes([i]) * 16 for i in b"abcde"], pa.binary(16)),
    "float": pa.array([0.5, 1.0, -2.0, 1e300, 3.0]),
    "time": pa.array([0, 1, 2, 3, 4], pa.timestamp("s")),
    "dictionary": pa.array(["x", "y", "x", "y", "z"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_ids_of_any_type_come_out_as_names_row_for_row(tmp_path, head, kind, ending, rng):
    vectors = rng.normal(size=(5, 12)).astype(np.float32)
    table = pa.table({"key": IDS[kind], "v": pa.array(vectors.tolist(), pa.list_(pa.float32()))})
    path = write(tmp_path / f"v.{ending}", table, rows=2)
    column = {} if kind != "text" else {"id_column": "key"}
    head.compress(path, tmp_path / "a.bin", **column)
    given = list(map(str, IDS[kind].to_pylist()))
    given = {"uuid": [f"{i:02x}" * 16 for i in b"abcde"], "binary": ["doc-1", "ff00", "doc-2", "doc-3", "01"]}.get(
        kind, given
    )
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert list(archive.names) == given
        np.testing.assert_array_equal(archive.to_numpy(), head.encode(vectors).symbols())
        archive.verify()


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_the_column_is_chosen_by_what_it_holds_and_the_model_takes(files, codec, head, tmp_path, rng, ending):
    photos, vectors = [data for _, data, _ in files[:5]], rng.normal(size=(5, 12)).astype(np.float32).tolist()
    table = pa.table({
        "hash": pa.array([None, *(bytes([i] * 32) for i in range(4))]),
        "small": pa.array([[1.0, 2.0]] * 5), "embedding": pa.array(vectors), "tokens": pa.array([[1, 2, 3]] * 5),
        "photo": pa.array([None, *photos[1:]], pa.binary()), "species": ["a", "b", "a", None, "b"],
        "uid": [f"u{i}" for i in range(5)],
    })  # fmt: skip
    path = write(tmp_path / f"t.{ending}", table)
    assert head.compress(path, tmp_path / "a.bin").images == 5
    report = codec.compress(path, tmp_path / "b.bin", id_column="uid", label_column="species")
    assert (report.images, report.skipped[0][0]) == (4, "u0")
    with stochcl.open(tmp_path / "b.bin") as archive:
        assert (tuple(archive.names), tuple(archive.labels)) == (("u1", "u2", "u3", "u4"), ("b", "a", "", "b"))
    # A binary id is no image, whatever the model takes.
    bare = write(tmp_path / f"bare.{ending}", table.select(["hash", "embedding"]))
    assert head.compress(bare, tmp_path / "c.bin").images == 5
    with pytest.raises(UsageError, match="these are embeddings"):
        codec.compress(bare, tmp_path / "d.bin")
    with pytest.raises(UsageError, match="12 numbers"):
        head.compress(path, tmp_path / "d.bin", column="small")
    for option in ("column", "id_column", "label_column"):
        with pytest.raises(UsageError, match=f"no column 'nope'.*{option}\\b"):
            head.compress(path, tmp_path / "d.bin", **{option: "nope"})
    with pytest.raises(UsageError, match="have columns"):
        codec.compress(tmp_path, tmp_path / "d.bin", column="x")


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
def test_tensors_and_small_integers_are_vectors(tmp_path, head, rng, ending):
    whole = rng.integers(-128, 128, (9, 12)).astype(np.int8)
    codes = head.encode(whole.astype(np.float32)).symbols()
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(whole.astype(np.float32))
    shaped = pa.FixedShapeTensorArray.from_numpy_ndarray(whole.astype(np.float32).reshape(9, 3, 4))
    half = pa.array(list(whole.astype(np.float16)), pa.list_(pa.float16()))
    for column in (tensors, shaped, half, pa.array(whole.tolist(), pa.list_(pa.int8())),
                   pa.array(whole.tolist(), pa.list_(pa.int8(), 12))):  # fmt: skip
        path = write(tmp_path / f"v.{ending}", pa.table({"v": column}), rows=4)
        head.compress(path, tmp_path / "a.bin", force=True)
        with stochcl.open(tmp_path / "a.bin") as archive:
            np.testing.assert_array_equal(archive.to_numpy(), codes)
    longer = write(tmp_path / f"w.{ending}", pa.table({"v": pa.array(whole.tolist(), pa.list_(pa.int32()))}))
    with pytest.raises(SourceError, match="none of its columns"):
        head.compress(longer, tmp_path / "b.bin")
    assert head.compress(longer, tmp_path / "b.bin", column="v").images == 9


def test_what_does_not_fit_is_refused_in_a_sentence(files, codec, model, tmp_path, rng):
    photos = write(tmp_path / "photos.parquet", image_table(files[:3]))
    vectors = write(tmp_path / "v.parquet", pa.table({"v": rng.normal(size=(5, 3)).tolist()}))
    with pytest.raises(UsageError, match=r"these are embeddings .* `stochcl train .*v\.parquet"):
        codec.compress(vectors, tmp_path / "a.bin")
    images = [data for _, data, _ in files[:3]]
    both = write(tmp_path / "two.parquet", image_table(files[:3], other=pa.array(images)))
    with pytest.raises(UsageError, match="several columns may hold the data \\(image, other\\)"):
        codec.compress(both, tmp_path / "a.bin")
    assert len(open_arrow([both], SourceOptions(column="image"))) == 3
    with pytest.raises(UsageError, match="no column 'x'"):
        open_arrow([both], SourceOptions(column="x"))
    with pytest.raises(UsageError, match="not images or vectors"):
        open_arrow([both], SourceOptions(column="label"))
    with pytest.raises(SourceError, match="none of its columns"):
        codec.compress(write(tmp_path / "n.parquet", pa.table({"n": [1]})), tmp_path / "a.bin")
    with pytest.raises(UsageError, match="not a Parquet or Arrow file"):
        codec.compress([photos, model], tmp_path / "a.bin")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(photos.read_bytes()[:-9])
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        codec.compress(cut, tmp_path / "a.bin")
    with pytest.raises(UsageError, match="resume=True"):
        codec.compress(image_table(files[:3]), tmp_path / "a.bin", resume=True)
    with pytest.raises(SourceError, match="read once"):
        open_source(photos)  # as training does


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 12), pa.binary()])
def test_an_empty_table_is_said_to_be_empty(head, codec, tmp_path, ending, kind):
    table = pa.table({"v": pa.array([], kind), "id": pa.array([], pa.int64())})
    path, fits = write(tmp_path / f"zero.{ending}", table), codec if kind == pa.binary() else head
    for given in (path, [path, path], table):
        with pytest.raises(SourceError, match="empty"):
            fits.compress(given, tmp_path / "a.bin")
    with pytest.raises(SourceError, match="empty"):
        estimate(path)
    if kind != pa.binary():
        np.save(tmp_path / "v.npy", np.eye(12, dtype=np.float32))
        head.compress(tmp_path / "v.npy", tmp_path / "v.bin")
        with pytest.raises(SourceError, match="empty"):
            search(tmp_path / "v.bin", [path])
        with pytest.raises(SourceError, match="empty"):
            train([path], tmp_path / "m.safetensors", rate=64)
        full = write(tmp_path / f"full.{ending}", pa.table({"v": pa.array([[1.0] * 12], kind), "id": [1]}))
        assert head.compress([path, full], tmp_path / "b.bin").images == 1


ROWS = pa.array([[1.0] * 12] * 3)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("other", "word"),
    [
        (pa.table({"w": ROWS, "id": [1, 2, 3], "label": ["a", "b", "c"]}), "no column 'v'"),
        (pa.table({"v": ROWS, "label": ["a", "b", "c"]}), "no column 'id'"),
        (pa.table({"v": ROWS, "id": [1, 2, 3]}), "no column 'label'"),
        (pa.table({"v": ROWS, "id": ["1", "2", "3"], "label": ["a", "b", "c"]}), "'id' holds string"),
        (pa.table({"v": [b"a", b"b", b"c"], "id": [1, 2, 3], "label": ["a", "b", "c"]}), "'v' holds binary"),
        (pa.table({"v": ROWS.cast(pa.list_(pa.float32())), "id": [1, 2, 3], "label": ["a"] * 3}), "list<.*float>"),
        (pa.table({"v": [[1.0] * 8] * 3, "id": [1, 2, 3], "label": ["a", "b", "c"]}), "rows of 8 numbers"),
    ],
)
def test_files_of_another_kind_are_noticed_before_any_work(head, tmp_path, ending, other, word):
    first = write(tmp_path / f"a.{ending}", pa.table({"v": ROWS, "id": [1, 2, 3], "label": ["a", "b", "c"]}))
    second = write(tmp_path / f"b.{ending}", other)
    with pytest.raises(SourceError, match=rf"^{second}: .*{word}"):
        head.compress([first, first, second], tmp_path / "out.bin")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_to_a_rate(files, codec, tmp_path):
    path = write(tmp_path / "a.parquet", image_table(files))
    report = codec.compress(path, tmp_path / "a.bin", rate=12)
    assert report.latents < codec.latents
    assert report.images == 42


def test_damage_inside_gives_what_came_before(files, codec, tmp_path):
    path = write(tmp_path / "a.arrow", image_table(files))
    path.write_bytes(path.read_bytes()[: -len(files[-1][1]) * 2])
    with pytest.raises(SourceError, match="cannot be read as Parquet or Arrow") as caught:
        codec.compress(path, tmp_path / "a.bin", batch_size=9)
    assert "images, is kept" in "".join(caught.value.__notes__)


def interrupted(codec, given, path, at, **options):
    """Compress and stop after so many rows; return what is said."""

    def stop(done, total):
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        codec.compress(given, path, progress=stop, **options)
    return "".join(caught.value.__notes__)


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
@pytest.mark.parametrize("at", [10, 25, 45])
def test_vectors_are_resumed_to_the_same_bytes(head, tmp_path, rng, ending, at, small_segments, monkeypatch):
    small_segments(10)
    monkeypatch.setattr("stochcl.api.source._MATRIX_ROWS", 5)
    rows = [None if i in (3, 31) else row for i, row in enumerate(rng.normal(size=(54, 12)).tolist())]
    table = pa.table({"v": pa.array(rows, pa.list_(pa.float32())), "id": range(54), "label": ["a", "b"] * 27})
    paths = [write(tmp_path / f"{i}.{ending}", table.slice(18 * i, 18)) for i in range(3)]
    out, whole = tmp_path / "a.bin", tmp_path / "whole.bin"
    assert "rows, is kept" in (said := interrupted(head, paths, out, at))
    assert "resume=True" in said
    told = []
    head.compress(paths, out, resume=True, progress=lambda done, total: told.append(done))
    assert told[0] >= at - 10
    head.compress(paths, whole)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("options", [{}, {"rate": 30}])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_images_are_resumed_to_the_same_bytes(files, codec, tmp_path, ending, options, small_segments):
    small_segments(10)
    path, out, whole = write(tmp_path / f"a.{ending}", image_table(files)), tmp_path / "a.bin", tmp_path / "whole.bin"
    assert "images, is kept" in interrupted(codec, path, out, 25, batch_size=5, **options)
    report = codec.compress(path, out, resume=True, batch_size=5, **options)
    assert report.encoded < 42
    codec.compress(path, whole, **options)
    assert out.read_bytes() == whole.read_bytes()


def test_another_file_or_column_is_not_resumed(head, tmp_path, rng, small_segments, monkeypatch):
    small_segments(10)
    monkeypatch.setattr("stochcl.api.source._MATRIX_ROWS", 5)
    rows = rng.normal(size=(60, 12)).tolist()
    path, out = write(tmp_path / "a.parquet", pa.table({"v": rows, "w": rows})), tmp_path / "a.bin"
    interrupted(head, path, out, 25, column="v")
    with pytest.raises(UsageError, match="another source"):
        head.compress(path, out, resume=True, column="w")
    write(path, pa.table({"v": rows[::-1], "w": rows}))
    with pytest.raises(UsageError, match="another source"):
        head.compress(path, out, resume=True, column="v")


def test_a_full_width_kept_of_a_table_is_checked(head, tmp_path, rng):
    path, out = write(tmp_path / "a.parquet", pa.table({"v": rng.normal(size=(60, 12)).tolist()})), tmp_path / "a.bin"
    head.compress(path, tmp_path / "a.bin.full")  # as an interrupted run leaves it
    kept = (tmp_path / "a.bin.full").read_bytes()
    assert head.compress(path, out, rate=15, resume=True).encoded == 0
    (tmp_path / "a.bin.full").write_bytes(kept)
    write(path, pa.table({"v": rng.normal(size=(61, 12)).tolist()}))
    with pytest.raises(UsageError, match="begun with another source"):
        head.compress(path, out, rate=15, resume=True, force=True)


def test_without_pyarrow_one_sentence_says_what_to_install(files, codec, tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", image_table(files[:2]))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for ask in (lambda: codec.compress(path, tmp_path / "a.bin"), lambda: stochcl.from_arrow(None)):
        with pytest.raises((MissingExtraError, AttributeError), match=r"pip install 'stochcl\[arrow\]'|schema"):
            ask()


# Codes


def test_codes_go_out_and_come_back(codes, tmp_path):
    with stochcl.open(codes) as archive:
        table = archive.to_arrow(rows=10).read_all()
        assert table.column_names == ["name", "label", "symbols", "vector"]
        # Of ten rows at a time, a processor may sum in another order than of all.
        np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), archive.to_vectors(), rtol=1e-5, atol=1e-6)
        for given in (table, table.combine_chunks().to_batches()[0], table.select(["symbols", "name"])):
            back = stochcl.from_arrow(given)
            np.testing.assert_array_equal(back.symbols(), archive.to_numpy())
            assert back.names == tuple(archive.names)
        kept = table.filter(pa.compute.equal(table["label"], "dogs"))
        with stochcl.Writer(tmp_path / "dogs.bin", archive.header, archive.tables, embed_tables=True) as out:
            out.add(stochcl.from_arrow(kept))
        with stochcl.open(tmp_path / "dogs.bin") as dogs:
            vectors = np.stack(kept["vector"].to_numpy())
            np.testing.assert_allclose(dogs.to_vectors(), vectors, rtol=1e-5, atol=1e-6)
    for ending in ("arrow", "parquet"):
        archives.decompress(codes, tmp_path / f"c.{ending}")
    assert ipc.open_file(tmp_path / "c.arrow").read_all().equals(parquet.read_table(tmp_path / "c.parquet"))
    with pytest.raises(UsageError, match="no column symbols"):
        stochcl.from_arrow(table.select(["name"]))
    with pytest.raises(UsageError, match="how many values"):
        stochcl.from_arrow(table.cast(pa.schema([pa.field(one.name, one.type) for one in table.schema])))
    with pytest.raises(UsageError, match="give the alphabet"):
        stochcl.from_arrow(pa.table({"symbols": [[1, 5]]}), alphabet=2)
    with pytest.raises(UsageError, match="one width"):
        stochcl.from_arrow(pa.table({"symbols": [[1, 0], [1]]}))


def test_a_hugging_face_data_set_goes_there_and_back(files, codec, codes, tmp_path):
    """Images as a data set, to codes, to a data set that is filtered, to codes again."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    classes = datasets.ClassLabel(names=["cats", "dogs", "fische"])
    rows = {"image": [{"bytes": data, "path": name} for name, data, _ in files], "label": [n for _, _, n in files]}
    photos = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "label": classes}))
    photos.to_parquet(tmp_path / "photos.parquet")
    codec.compress(tmp_path / "photos.parquet", tmp_path / "a.bin")
    with stochcl.open(tmp_path / "a.bin") as archive, stochcl.open(codes) as one:

        def known(opened):
            return sorted(map(bytes, opened.to_numpy()))

        assert known(archive) == known(one)
        assert set(archive.labels) == set(classes.names)
        data = datasets.Dataset(archive.to_arrow().read_all())
        assert data.with_format("numpy")[7]["symbols"].tolist() == archive.to_numpy()[7].tolist()
        some = data.filter(lambda row: row["label"] == "dogs").flatten_indices()
        with pytest.raises(UsageError, match="how many values"):
            stochcl.from_arrow(some.data.table)
        back = stochcl.from_arrow(some.data.table, alphabet=archive.header.alphabet)
        np.testing.assert_array_equal(
            back.symbols(), archive.to_numpy()[[label == "dogs" for label in archive.labels]]
        )
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "photos.parquet"), cache_dir=str(tmp_path / "hf"))
    with stochcl.writer(tmp_path / "b.bin", codec) as out:
        for batch in loaded.iter(batch_size=16):
            out.add(batch["image"], labels=[classes.int2str(i) for i in batch["label"]])
    with stochcl.open(tmp_path / "a.bin") as a, stochcl.open(tmp_path / "b.bin") as b:
        np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())
        assert a.labels == b.labels


def test_sources_are_of_the_kind_that_their_column_says(files, tmp_path, rng):
    photos = open_arrow([write(tmp_path / "a.parquet", image_table(files[:4]))])
    assert isinstance(photos, ArrowImages)
    assert len(photos) == 4
    vectors = open_arrow([write(tmp_path / "v.arrow", pa.table({"v": rng.normal(size=(5, 3)).tolist()}))])
    assert isinstance(vectors, ArrowVectors)
    assert vectors.dim == 3
    assert open_arrow([tmp_path / "nowhere.parquet"]) is None


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array([0, -1, 2, None], pa.int64()), ("cats", "", "fische", "")),
        (pa.array([0.0, float("nan"), 2.5, None], pa.float64()), ("0", "", "2.5", "")),
        (pa.array(["nan", "", "NA", None]), ("nan", "", "NA", "")),
    ],
)
def test_no_label_in_a_column_is_no_label(codec, images, tmp_path, column, labels):
    files = sorted((images / "cats").iterdir())[:4]
    table = pa.table({"image": pa.array([path.read_bytes() for path in files]), "label": column})
    path = write(tmp_path / "a.parquet", table.replace_schema_metadata(NAMED))
    codec.compress(path, tmp_path / "a.bin")
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.labels == labels


def test_paths_of_a_column_keep_their_folders(codec, images, tmp_path):
    file = next((images / "cats").iterdir()).read_bytes()
    given = ["s3://bucket/cat/1.png", r"C:\photos\2.png", "../photos/3.png", "/data/4.png", "..", None]
    path = write(tmp_path / "a.parquet", pa.table({"image": pa.array([file] * 6), "path": pa.array(given)}))
    codec.compress(path, tmp_path / "a.bin")
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.names == ("cat/1.png", "photos/2.png", "photos/3.png", "data/4.png", "0000004", "0000005")
        assert archive.labels == ("cat", "photos", "photos", "data", "", "")
