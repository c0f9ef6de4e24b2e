import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedavg import FedAvg
from training.federated.strategies.scaffold import Scaffold


def update(client, num_examples, weight, difference, variance=1.0, counter=0):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(counter),
    }
    return Update(client, num_examples, 5, 0.5, state, {"w": torch.tensor([difference])})


SERVER = Server(update(0, 1, 20.0, 0.0).state, frozenset({"w"}))


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def test_a_client_corrects_its_gradients_and_remembers_the_raw_ones():
    model = Scalar(0.0)
    control, own = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    rule = Scaffold().begin(model, control, own)
    corrected = []
    for raw in (3.0, 4.0, 8.0):
        model.w.grad = torch.tensor([raw], dtype=torch.float64)
        rule.adjust(model)
        corrected.append(model.w.grad.item())
    assert corrected == [1.0, 2.0, 6.0]  # g - 3 + 1
    extras, memory = rule.finish(model)
    assert memory["w"].item() == 5.0  # (3 + 4 + 8)/3
    assert extras["w"].item() == 2.0  # 5 - 3


def test_a_client_without_a_step_keeps_its_control_variate():
    rule = Scaffold().begin(Scalar(0.0), {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    extras, memory = rule.finish(Scalar(0.0))
    assert memory["w"].item() == 3.0
    assert extras["w"].item() == 0.0


def test_for_gradient_descent_the_mean_gradient_is_the_papers_option_two():
    source = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3).double()
    shapes = {name: value.shape for name, value in model.named_parameters()}
    control, own = (
        {
            n: torch.randn(shape, generator=source, dtype=torch.float64)
            for n, shape in shapes.items()
        }
        for _ in range(2)
    )
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    rule = Scaffold().begin(model, control, own)
    for _ in range(7):
        optimizer.zero_grad()
        image = torch.randn(5, 4, generator=source, dtype=torch.float64)
        model(image).square().mean().backward()
        rule.adjust(model)
        optimizer.step()
    _, memory = rule.finish(model)
    for name, value in model.named_parameters():
        option_two = own[name] - control[name] + (start[name] - value.detach()) / (7 * 0.03)
        torch.testing.assert_close(memory[name], option_two)


def test_three_rounds_with_clients_that_come_and_go():
    strategy = Scaffold()
    assert strategy.broadcast(SERVER) == {}

    first = strategy.aggregate(
        SERVER, iter([update(0, 1, 6.0, 2.0, 1.0, 9), update(1, 3, 14.0, 6.0, 5.0, 7)])
    )
    assert first.model["w"].item() == 10.0  # (6 + 14)/2; by examples it would be 12
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4
    assert first.model["steps"].item() == 9
    assert first.model.keys() == SERVER.model.keys()
    assert first.model["var"].dtype == torch.float32
    assert strategy.broadcast(first)["w"].item() == 4.0  # 0 + (2 + 6)/2

    second = strategy.aggregate(first, iter([update(0, 1, 7.0, -1.0)]))
    assert second.model["w"].item() == 7.0
    assert strategy.broadcast(second)["w"].item() == 3.5  # 4 - 1/2: the other still counts

    third = strategy.aggregate(second, iter([update(5, 2, 8.0, 5.0)]))
    assert strategy.broadcast(third)["w"].item() == 4.0  # (2*3.5 + 5)/3: there are three now
    assert third.memory["clients"].tolist() == [0, 1, 5]


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 4), st.floats(-10, 10, width=32), min_size=1),
        min_size=1,
        max_size=6,
    )
)
def test_the_servers_control_variate_is_the_mean_of_all_that_ever_took_part(rounds):
    server, own = SERVER, {}
    for new in rounds:
        updates = [update(k, 1 + k, 1.0, value - own.get(k, 0.0)) for k, value in new.items()]
        server = Scaffold().aggregate(server, iter(updates))
        own |= new
    mean = Scaffold().broadcast(server)["w"].item()
    assert mean == pytest.approx(sum(own.values()) / len(own), abs=1e-4)


def run(strategy, num_rounds):
    """Clients with losses w^2/2 and 2(w - 1)^2, who go several steps alone; their sum is least at 0.8."""
    server = Server({"w": torch.tensor([5.0], dtype=torch.float64)}, frozenset({"w"}))
    memories = {0: {}, 1: {}}
    for _ in range(num_rounds):
        updates = []
        for client, (curvature, centre) in enumerate([(1.0, 0.0), (4.0, 1.0)]):
            model = Scalar(server.model["w"].item())
            rule = strategy.begin(model, strategy.broadcast(server), memories[client])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(10):
                optimizer.zero_grad()
                (curvature / 2 * (model.w - centre).square()).sum().backward()
                rule.adjust(model)
                optimizer.step()
            extras, memories[client] = rule.finish(model)
            state = {"w": model.w.detach().clone()}
            updates.append(Update(client, 1, 10, 0.5, state, extras))
        server = strategy.aggregate(server, iter(updates))
    return server.model["w"].item()


def test_it_finds_the_common_minimum_where_fedavg_stops_elsewhere():
    assert run(Scaffold(), 60) == pytest.approx(0.8, abs=1e-4)
    assert abs(run(FedAvg(), 60) - 0.8) > 0.1


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        Scaffold().aggregate(SERVER, iter(()))
