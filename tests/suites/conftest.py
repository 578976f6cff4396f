import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One store for all runs of this directory, so that corpus and tokenizer are made once."""
    return tmp_path_factory.mktemp("store")
