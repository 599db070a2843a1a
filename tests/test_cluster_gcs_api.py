import pytest
from gcs_fake import GcsFake

from cluster.gcs_api import GcsApi
from cluster.ray_api import RayUnreachableError


def test_the_nodes_that_are_about_to_go_are_told_by_their_ids():
    with GcsFake(token="secret") as fake:
        gcs = GcsApi(fake.address, "secret")
        assert gcs.draining_nodes() == frozenset()
        fake.draining = ["ab" * 28, "cd" * 28]
        assert gcs.draining_nodes() == {"ab" * 28, "cd" * 28}
        gcs.close()


@pytest.mark.parametrize(("token", "delay_s"), [("other", 0.0), ("secret", 3.0)])
def test_what_does_not_answer_says_so_without_the_token(token, delay_s):
    with GcsFake(token="secret", delay_s=delay_s) as fake:
        gcs = GcsApi(fake.address, token)
        with pytest.raises(RayUnreachableError, match="does not answer") as caught:
            gcs.draining_nodes()
        assert token not in str(caught.value)
        gcs.close()


def test_an_address_at_which_nobody_listens_is_unreachable():
    gcs = GcsApi("127.0.0.1:9", None)
    with pytest.raises(RayUnreachableError):
        gcs.draining_nodes()
