import pytest
import torch

from cache_schema.errors import InputError
from training.config import make_config
from training.federated.aggregate import Update
from training.federated.hostile import Liars, choose_liars, draw_turnout

MEMBERS = [0, 2, 3, 5, 7, 8, 9, 11]


def configured(tiny_config, **settings):
    return tiny_config.model_copy(update=settings)


def test_by_default_everybody_takes_part(tiny_config):
    turnout = draw_turnout(MEMBERS, 1, tiny_config)
    assert turnout.present == tuple(MEMBERS)
    assert turnout.absent == ()


def test_a_fraction_of_the_clients_is_asked_and_others_in_the_next_round(tiny_config):
    config = configured(tiny_config, fraction=0.4)
    rounds = [draw_turnout(MEMBERS, number, config).present for number in range(1, 41)]
    assert {len(present) for present in rounds} == {3}  # 0.4 * 8 = 3.2
    assert all(list(present) == sorted(set(present)) for present in rounds)
    assert {client for present in rounds for client in present} == set(MEMBERS)
    assert draw_turnout(MEMBERS, 7, config).present == rounds[6]
    other = configured(tiny_config, fraction=0.4, seed=1)
    assert [draw_turnout(MEMBERS, n, other).present for n in range(1, 41)] != rounds


def test_a_tiny_fraction_is_one_client(tiny_config):
    assert len(draw_turnout(MEMBERS, 1, configured(tiny_config, fraction=0.01)).present) == 1


def test_clients_are_lost_at_the_given_rate_and_never_all_of_them(tiny_config):
    config = configured(tiny_config, dropout_rate=0.25)
    turnouts = [draw_turnout(MEMBERS, number, config) for number in range(1, 401)]
    lost = sum(len(turnout.absent) for turnout in turnouts)
    assert lost / (400 * 8) == pytest.approx(0.25, abs=0.03)
    assert all(sorted(t.present + t.absent) == MEMBERS for t in turnouts)
    stormy = configured(tiny_config, dropout_rate=0.99)
    assert {len(draw_turnout(MEMBERS, n, stormy).present) for n in range(1, 30)} == {1}


def update(client):
    state = {"w": torch.tensor([3.0, 0.0]), "steps": torch.tensor(4)}
    return Update(client, 1, 1, 0.5, state)


MODEL = {"w": torch.tensor([1.0, 1.0]), "steps": torch.tensor(0)}


def test_a_flipped_update_goes_the_other_way():
    lie = Liars("sign-flip", frozenset({1}), 0).falsify(update(1), MODEL, 1)
    assert lie.state["w"].tolist() == [-1.0, 2.0]  # 1 - (3 - 1), 1 - (0 - 1)
    assert lie.state["steps"].item() == 4


def test_a_lie_can_be_several_times_as_large(tiny_config):
    liars = choose_liars([1], configured(tiny_config, byzantine="sign-flip:1:2.5"))
    assert liars.falsify(update(1), MODEL, 1).state["w"].tolist() == [-4.0, 3.5]  # 1 - 2.5 * 2, ...


@pytest.mark.parametrize("text", ["sign-flip:2:", "sign-flip:2:-1", "nan:2:3", "noise:0", "flip:1"])
def test_liars_that_cannot_be_are_refused_by_option(text):
    with pytest.raises(InputError, match="--byzantine"):
        make_config(byzantine=text)


def test_noise_is_ten_times_as_large_as_the_change():
    torch.manual_seed(0)
    model = {"w": torch.zeros(10_000)}
    sent = Update(1, 1, 1, 0.5, {"w": torch.full((10_000,), 0.3)})
    liars = Liars("noise", frozenset({1}), 0)
    first, second = (liars.falsify(sent, model, number).state["w"] for number in (1, 2))
    assert first.std().item() == pytest.approx(3.0, rel=0.05)
    assert first.mean().item() == pytest.approx(0.0, abs=0.1)
    assert not torch.equal(first, second)
    assert torch.equal(first, liars.falsify(sent, model, 1).state["w"])


def test_who_is_no_liar_is_left_alone():
    honest = update(0)
    assert Liars("nan", frozenset({1}), 0).falsify(honest, MODEL, 1) is honest


def test_liars_are_drawn_from_the_clients_and_stay_the_same(tiny_config):
    config = configured(tiny_config, byzantine="noise:3")
    liars = choose_liars(MEMBERS, config)
    assert len(liars.clients) == 3
    assert liars.clients < set(MEMBERS)
    assert choose_liars(MEMBERS, config) == liars
    drawn = {choose_liars(MEMBERS, configured(config, seed=seed)).clients for seed in range(5)}
    assert len(drawn) > 1


def test_more_liars_than_clients_are_refused(tiny_config):
    with pytest.raises(InputError, match="--byzantine nan:9: there are 8 clients"):
        choose_liars(MEMBERS, configured(tiny_config, byzantine="nan:9"))
