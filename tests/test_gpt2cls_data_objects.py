"""Sources in object storage, read with pyarrow from a server that speaks S3."""

from pathlib import Path

import pytest
from s3_fake import S3Fake

from gpt2cls.config import CorpusConfig, DataConfig
from gpt2cls.data.corpus import read_corpus
from gpt2cls.data.locate import address_fault, is_object
from gpt2cls.data.objects import copies, with_local_files
from gpt2cls.data.prepare import prepare
from gpt2cls.errors import DataError
from gpt2cls.training import shelf
from jobs.faults import BadRequestError
from jobs.read import read_job

ROWS = b"text,label\n" + b"".join(b"text %d,%s\n" % (i, b"ab"[i % 2 :][:1]) for i in range(40))
OBJECTS = {
    "bucket/rows/train.csv": ROWS,
    "bucket/corpus/a.txt": b"one text of words\n" * 3,
    "bucket/corpus/b.txt": b"another text of words\n" * 3,
    "bucket/corpus/deep/c.txt": b"not directly in the folder\n",
    "bucket/spark/_SUCCESS": b"",
    "bucket/spark/.part-0.txt.crc": b"12345678",
    "bucket/spark/part-0.txt": b"a text\n",
    "bucket/mixed/part-1.txt": b"first\n",
    "bucket/mixed/part-2.txt": b"second\n",
    "bucket/mixed/notes.md": b"no text\n",
}


@pytest.fixture
def storage(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with S3Fake(OBJECTS) as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", fake.url)
        yield fake


def copied(address, cache_dir):
    return copies([address], cache_dir)[address]


def test_rows_are_those_of_the_object_and_it_is_copied_once(storage, tmp_path):
    config = DataConfig(train="s3://bucket/rows/train.csv", validation=0.2)
    local = with_local_files(config, tmp_path)
    data = prepare(local, base_dir=tmp_path, seed=0)
    assert len(data.train) + len(data.validation) == 40
    (folder,) = (tmp_path / "objects").iterdir()
    assert (folder / "train.csv").read_bytes() == ROWS
    storage.asked.clear()
    assert with_local_files(config, tmp_path) == local
    assert not [asked for asked in storage.asked if asked.startswith("GET /bucket/rows")]


def test_an_object_that_changed_is_copied_again(storage, tmp_path):
    (before,) = copied("s3://bucket/rows/train.csv", tmp_path)
    storage.objects["bucket/rows/train.csv"] = ROWS + b"one more,a\n"
    (after,) = copied("s3://bucket/rows/train.csv", tmp_path)
    assert after.read_bytes() == ROWS + b"one more,a\n" != before.read_bytes()


def test_a_folder_or_a_pattern_of_texts_is_a_corpus(storage, tmp_path):
    for address, names in {
        "s3://bucket/corpus": ["a.txt", "b.txt"],
        "s3://bucket/corpus/": ["a.txt", "b.txt"],
        "s3://bucket/mixed/part-*.txt": ["part-1.txt", "part-2.txt"],
        "s3://bucket/mixed/part-*.txt?region=eu-west-1": ["part-1.txt", "part-2.txt"],
        "s3://bucket/spark": ["part-0.txt"],
    }.items():
        assert [path.name for path in copied(address, tmp_path)] == names
    config = CorpusConfig(train=("s3://bucket/corpus", "s3://bucket/mixed/part-*.txt"))
    config = config.model_copy(update={"validation": "s3://bucket/mixed/part-2.txt"})
    local = with_local_files(config, tmp_path)
    corpus = read_corpus(local, base_dir=tmp_path, seed=0, cache_dir=tmp_path)
    assert "first" in " ".join(corpus.train.texts.to_pylist())
    assert [text.strip() for text in corpus.validation.texts.to_pylist()] == ["second"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/rows/none.csv", "no such object"),
        ("s3://bucket/corpus/*.csv", "no such object"),
        ("s3://elsewhere/rows", "no such object"),
    ],
)
def test_what_is_not_there_is_one_sentence(address, said, storage, tmp_path):
    with pytest.raises(DataError, match=said):
        copied(address, tmp_path)


def test_several_objects_are_no_table(storage, tmp_path):
    with pytest.raises(DataError, match="2 objects; name one"):
        with_local_files(DataConfig(train="s3://bucket/corpus"), tmp_path)


def test_what_may_not_be_read_is_said_and_nothing_is_left(storage, tmp_path):
    storage.broken = True
    with pytest.raises(DataError, match=r"cannot be read: .*ACCESS_DENIED"):
        copied("s3://bucket/rows/train.csv", tmp_path)
    assert list((tmp_path / "objects").iterdir()) == []


def test_what_would_not_fit_is_refused_before_it_is_copied(storage, tmp_path, monkeypatch):
    config = CorpusConfig(train="s3://bucket/corpus/a.txt", validation="s3://bucket/corpus/b.txt")
    monkeypatch.setattr(shelf, "LIMIT_BYTES", 100)  # each of them would
    with pytest.raises(DataError, match="no room for copies"):
        with_local_files(config, tmp_path)
    assert list((tmp_path / "objects").iterdir()) == []


def test_the_copies_of_a_job_stay_and_others_go(storage, tmp_path, monkeypatch):
    (here,) = copied("s3://bucket/corpus/a.txt", tmp_path)
    (other,) = copied("s3://bucket/rows/train.csv", tmp_path)
    monkeypatch.setattr(shelf, "LIMIT_BYTES", 130)
    config = CorpusConfig(train="s3://bucket/corpus/b.txt", validation="s3://bucket/corpus/a.txt")
    local = with_local_files(config, tmp_path)
    assert Path(local.train).is_file() and Path(local.validation) == here and here.is_file()
    assert not other.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/folder/train.csv", None),
        ("gs://anonymous@bucket/train.csv", None),
        ("s3://bucket", "a bucket and an object"),
        ("s3:///train.csv", "a bucket and an object"),
        ("s3://[bucket/x", "a bucket and an object"),
        ("s3://bucket/a#b.csv", "a bucket and an object"),
        ("s3://bucket/a.csv?region=eu-west-1&endpoint_override=host:9000&scheme=http", None),
        ("s3://bucket/a.csv?secret_key=hidden", "without credentials"),
        ("abfss://container@account.dfs.core.windows.net/folder/a.parquet", None),
        ("abfss://account.blob.core.windows.net/c/a.csv?sp=r&sig=hidden", "without credentials"),
        ("abfss://account.blob.core.windows.net", "abfss://container@account"),
    ],
)
def test_an_address_is_checked_without_asking_anybody(address, said):
    fault = address_fault(address)
    assert fault is None if said is None else said in fault and "hidden" not in fault


def test_credentials_in_an_address_are_refused_and_not_repeated(tmp_path):
    with pytest.raises(DataError, match="without credentials") as refused:
        copied("s3://AKIAKEY:very-secret@bucket/train.csv", tmp_path)
    assert "very-secret" not in str(refused.value) and "AKIAKEY" not in str(refused.value)


def test_other_sources_are_none_of_its_business(tmp_path):
    assert not any(map(is_object, ["train.csv", "https://example.org/a.csv", "s3", 0.1, None]))
    config = DataConfig(train="rows.csv", validation=0.2)
    assert with_local_files(config, tmp_path) == config


def a_job(folder, text):
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml", [], data_dir=None)


@pytest.mark.parametrize(
    "text",
    [
        "kind: finetune\nname: x\ndata: {train: 's3://bucket/rows/train.csv'}",
        "kind: pretrain\nname: x\ndata: {train: ['s3://bucket/corpus', 'gs://b/part-*.txt']}",
    ],
)
def test_a_job_may_name_them_and_nobody_is_asked_before_it_runs(text, tmp_path, storage):
    assert "://" in str(a_job(tmp_path, text).job.data.train)
    assert storage.asked == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "kind: finetune\nname: x\ndata: {train: 's3://me:secret@b/a.csv'}",
            "must be an address without",
        ),
        ("kind: pretrain\nname: x\ndata: {train: 's3://bucket'}", "must be a bucket and an object"),
        ("kind: evaluate\nname: x\nmodel: m\ndata: {test: 's3://b/a.csv'}", "download it first"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once_without_its_secrets(text, said, tmp_path):
    with pytest.raises(BadRequestError) as refused:
        a_job(tmp_path, text)
    assert said in str(refused.value) and "secret" not in str(refused.value)
