import pytest
import torch
from torch import nn

from cache_schema.errors import InputError
from training.federated.aggregate import Server, State, Update
from training.federated.strategies.registry import STRATEGIES, make_strategy
from training.federated.strategy import Strategy

TRAINABLE = frozenset({"0.weight", "0.bias", "1.weight", "1.bias"})
ORDER_MATTERS = {"cyclic"}
"""Each client starts from the one before it."""


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def server_of(model: nn.Module) -> Server:
    return Server({name: t.clone() for name, t in model.state_dict().items()}, TRAINABLE)


def train(strategy: Strategy, server: Server, client: int, memory: State) -> tuple[Update, State]:
    """One client's round: a few steps of gradient descent on numbers of its own."""
    model = network(0)
    model.load_state_dict(server.model)
    rule = strategy.begin(model, strategy.broadcast(server), memory)
    source = torch.Generator().manual_seed(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    num_steps = 2 + client % 3
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 3, generator=source)) - client).square().mean()
        loss.backward()
        rule.adjust(model)
        optimizer.step()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    extras, kept = rule.finish(model)
    return Update(client, 10 + client, num_steps, loss.item(), state, extras), kept


def carry_out(strategy: Strategy, rounds: list[list[int]]) -> Server:
    """Rounds with the given clients in the given order; sequential strategies get no chain here."""
    server = server_of(network(9))
    memories: dict[int, State] = {}
    for number, clients in enumerate(rounds, start=1):
        updates = []
        for client in clients:
            update, memories[client] = train(strategy, server, client, memories.get(client, {}))
            updates.append(update)
        after = strategy.aggregate(server, iter(updates))
        server = Server(after.model, after.trainable, after.memory, number)
    return server


def make(name: str) -> Strategy:
    options = {"dp-fedavg": {"noise": "0", "clip": "1000"}, "krum": {"byzantine": "0"}}
    return make_strategy(name, options.get(name))


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_updates_return_themselves(name):
    server = server_of(network(9))
    extras = train(make(name), server, 1, {})[0].extras
    updates = [Update(client, 5, 3, 0.5, dict(server.model), extras) for client in range(5)]
    after = make(name).aggregate(server, iter(updates))
    for key, tensor in server.model.items():
        torch.testing.assert_close(after.model[key], tensor)


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - ORDER_MATTERS))
def test_the_order_of_clients_does_not_matter(name):
    forth = carry_out(make(name), [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    back = carry_out(make(name), [[4, 3, 2, 1, 0], [2, 0, 1, 4, 3], [1, 4, 0, 3, 2]])
    for key, tensor in forth.model.items():
        torch.testing.assert_close(back.model[key], tensor)


@pytest.mark.parametrize("name", STRATEGIES)
def test_clients_may_come_and_go(name):
    server = carry_out(make(name), [[0, 1, 2, 3, 4], [1, 2, 3], [0, 1, 2, 3, 4], [0, 3, 4]])
    assert server.model.keys() == network(0).state_dict().keys()
    for key, tensor in network(0).state_dict().items():
        assert server.model[key].dtype == tensor.dtype
        assert torch.isfinite(server.model[key].double()).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_statistics_of_batchnorm_lie_between_those_of_the_clients(name):
    server = server_of(network(9))
    updates = [train(make(name), server, client, {})[0] for client in range(5)]
    after = make(name).aggregate(server, iter(updates))
    for key in ("1.running_mean", "1.running_var"):
        all_clients = torch.stack([update.state[key] for update in updates])
        assert (after.model[key] >= all_clients.min(0).values - 1e-6).all()
        assert (after.model[key] <= all_clients.max(0).values + 1e-6).all()
    counts = {int(update.state["1.num_batches_tracked"]) for update in updates}
    assert int(after.model["1.num_batches_tracked"]) in counts


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_the_server_keeps_can_be_saved_and_its_own_model_is_left_alone(name):
    server = server_of(network(9))
    before = {key: tensor.clone() for key, tensor in server.model.items()}
    update, kept = train(make(name), server, 1, {})
    after = make(name).aggregate(server, iter([update] * 5))
    for state in (after.memory, kept, update.extras):
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert all(torch.equal(server.model[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_update_is_no_model(name):
    with pytest.raises(ValueError, match="no update"):
        make(name).aggregate(server_of(network(9)), iter(()))


def test_an_unknown_strategy_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"--strategy fedsgd: unknown; choose one of .*fedavg"):
        make_strategy("fedsgd")


def test_an_unknown_hyper_parameter_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"of fedavg: mu: Extra inputs .* it has these: none"):
        make_strategy("fedavg", {"mu": "1"})


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_hyper_parameter_that_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match=r"^--strategy-option of fedprox: mu: .*finite number"):
        make_strategy("fedprox", {"mu": value})
