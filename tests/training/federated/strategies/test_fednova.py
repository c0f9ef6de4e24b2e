import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedavg import FedAvg
from training.federated.strategies.fednova import FedNova


def update(client, num_examples, num_steps, weight, variance=1.0, counter=0):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(counter),
    }
    return Update(client, num_examples, num_steps, 0.5, state)


SERVER = Server(update(0, 1, 1, 10.0).state, frozenset({"w"}))


def test_changes_are_compared_a_step():
    updates = [update(0, 1, 2, 6.0, 1.0, 9), update(1, 3, 6, 22.0, 5.0, 7)]
    after = FedNova().aggregate(SERVER, iter(updates))
    # Changes a step are -4/2 = -2 and 12/6 = 2, their mean (1*-2 + 3*2)/4 = 1; mean number of steps
    # (1*2 + 3*6)/4 = 5. FedAvg would give 18.
    assert after.model["w"].item() == 15.0  # 10 + 5*1
    assert after.model["var"].item() == 4.0  # (1*1 + 3*5)/4, not normalised
    assert after.model["steps"].item() == 9
    assert after.model.keys() == SERVER.model.keys()


def test_a_client_without_a_step_holds_the_others_back_as_in_fedavg():
    updates = [update(0, 1, 0, 10.0), update(1, 1, 4, 18.0)]
    after = FedNova().aggregate(SERVER, iter(updates))
    # Changes a step 0 and 2, mean 1; mean number of steps 2.
    assert after.model["w"].item() == 12.0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.floats(-100, 100, width=32)), min_size=1, max_size=6
    ),
    st.integers(1, 1000),
)
def test_with_equal_numbers_of_steps_it_is_fedavg(clients, num_steps):
    updates = [update(k, n, num_steps, w) for k, (n, w) in enumerate(clients)]
    ours = FedNova().aggregate(SERVER, iter(updates))
    theirs = FedAvg().aggregate(SERVER, iter(updates))
    torch.testing.assert_close(ours.model["w"], theirs.model["w"])


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedNova().aggregate(SERVER, iter(()))
