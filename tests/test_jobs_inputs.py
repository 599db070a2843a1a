"""What ranks are told of a job's texts."""

import pytest

from cluster.home import Home, Surroundings
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.prepare import prepare
from jobs.inputs import payload_of, tokenizer_of, tokens_of, write_labels
from jobs.spec import FinetuneJob


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Data, tokenizer and payload of a job on the built-in texts, by how its embedding begins."""
    folder = tmp_path_factory.mktemp("told")
    surroundings = Surroundings(Home(folder), None, None, None)

    def told_of(embedding_init, **data):
        job = FinetuneJob.model_validate(
            {
                "kind": "finetune",
                "name": "few",
                "data": {"train": "bbc-news", "max_length": 32, "labelled": 20, **data},
                "model": {"backbone": "gpt2-tiny", "embedding_init": embedding_init},
            }
        )
        prepared = prepare(job.data, base_dir=folder, seed=0)
        tokenizer = tokenizer_of(job, prepared, surroundings, folder)
        payload = payload_of(
            job,
            prepared,
            tokenizer,
            tokens_of(job, prepared, tokenizer, surroundings),
            write_labels(prepared, folder),
            job_dir=folder,
            base_dir=folder,
            cache_dir=folder,
            threads=1,
        )
        return prepared, tokenizer, payload

    return told_of


def test_texts_without_labels_are_read_where_the_embedding_begins_with_them(told):
    prepared, tokenizer, payload = told("lsa")
    assert len(open_tokens(payload.train_tokens)) == 20
    assert len(open_tokens(payload.unlabelled_tokens)) == len(prepared.unlabelled) > 1000
    assert tokenizer.vocab_size == 8000  # of all these texts, which the 20 alone cannot fill


def test_elsewhere_they_are_not(told):
    _, tokenizer, payload = told("random")
    assert payload.unlabelled_tokens is None
    assert tokenizer.vocab_size < 8000
    assert told("lsa", labelled=None)[2].unlabelled_tokens is None
