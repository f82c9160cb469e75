"""Programs are compiled anew, once for all tests of a session, and none of the user's cache is touched."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory, worker_id):
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGENCY_CACHE_DIR", str((base if worker_id == "master" else base.parent) / "fused"))
        yield
