"""Programs are compiled anew, and none of the user's cache is touched."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGENCY_CACHE_DIR", str(tmp_path_factory.mktemp("fused")))
        yield
