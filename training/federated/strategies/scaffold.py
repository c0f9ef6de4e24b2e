"""SCAFFOLD: clients correct their gradients by how these usually differ from everybody's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from training.federated.aggregate import Server, State, Update, weighted_mean
from training.federated.strategies.server_step import recall, stored
from training.federated.strategy import LocalRule, Strategy

_CLIENTS = "clients"
_CONTROL = "control/"
_SIZE = "/num_examples"  # a slash first: no tensor of a network is called that


@final
@dataclass(frozen=True)
class Scaffold(Strategy):
    r"""Stochastic controlled averaging, Karimireddy et al. (2020), arXiv:1910.06378.

    Client $k$ keeps a control variate $c_k$, the direction in which its own gradients go, and the server
    their mean $c$. Every local step uses the gradient $g_k - c_k + c$, so that clients with different
    data drift apart less. After the round

    $$ c_k^+ = \frac{1}{K_k} \sum_{i=1}^{K_k} g_{k,i}, \quad
    c \leftarrow c + \frac{1}{N} \sum_{k \in S} (c_k^+ - c_k), \quad
    w \leftarrow \frac{1}{|S|} \sum_{k \in S} w_k $$

    with the raw gradients $g_{k,i}$ of the client's $K_k$ steps. For gradient descent with rate $\eta$ this
    is the paper's option II: $w - w_k = \eta \sum_i (g_{k,i} - c_k + c)$, hence
    $c_k - c + \frac{1}{\eta K_k} (w - w_k) = \frac{1}{K_k} \sum_i g_{k,i}$. Unlike that form it also means
    something for Adam, for which the paper's proofs do not hold.

    As in the paper all clients count alike, whatever their number of examples, and the server's
    step size is 1. Statistics of BatchNorm, which it does not speak of, are averaged by examples.

    $N$ is the number of clients that ever took part, and $c$ always the mean of their $c_k$; the sum
    above is divided anew when one comes for the first time, with $c_k = 0$. With all clients present
    in the first round that is the paper's $N$. A client that is absent keeps its $c_k$ and counts in $c$.

    The server keeps $c$, one tensor a parameter, and the numbers of the clients that it has seen;
    a client keeps $c_k$. Besides the network $c$ goes to each client and $c_k^+ - c_k$ comes back.
    """

    def broadcast(self, server: Server) -> State:
        """Send the server's control variate; there is none before the first round."""
        return {
            name.removeprefix(_CONTROL): tensor
            for name, tensor in server.memory.items()
            if name.startswith(_CONTROL)
        }

    def begin(self, model: nn.Module, extras: State, memory: State) -> LocalRule:
        """Prepare the correction of the gradients."""
        return _Control(model, extras, memory)

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks and bring the control variate up to date."""
        known = server.memory[_CLIENTS].tolist() if _CLIENTS in server.memory else []
        reported: list[int] = []

        def take() -> Iterator[tuple[float, State]]:
            for update in updates:
                reported.append(update.client)
                yield 1.0, _with_weighted_buffers(update, server.trainable)

        mean = weighted_mean(take())
        size = mean.pop(_SIZE)
        clients = sorted({*known, *reported})
        model, memory = {}, {_CLIENTS: torch.tensor(clients, dtype=torch.int64)}
        for name, old in server.model.items():
            model[name] = mean[name]
            if name in server.trainable:
                difference = mean[_CONTROL + name].double()
                control = recall(server.memory, _CONTROL + name, torch.zeros_like(difference))
                total = len(known) * control + len(reported) * difference
                memory[_CONTROL + name] = stored(total / len(clients), old)
            elif old.is_floating_point():
                model[name] = (mean[name] / size).to(old.dtype)
        return replace(server, model=model, memory=memory)


def _with_weighted_buffers(update: Update, trainable: frozenset[str]) -> State:
    """Put all that is averaged together; in a plain mean, buffers times examples make a weighted one."""
    size = torch.tensor(float(update.num_examples), dtype=torch.float64)
    state = {
        name: tensor.double() * size
        if tensor.is_floating_point() and name not in trainable
        else tensor
        for name, tensor in update.state.items()
    }
    control = {_CONTROL + name: tensor for name, tensor in update.extras.items()}
    return {**state, **control, _SIZE: size}


class _Control(LocalRule):
    """The correction $c - c_k$ and the sum of raw gradients, on the device of the parameters."""

    def __init__(self, model: nn.Module, control: State, own: State) -> None:
        self._own: dict[str, Tensor] = {}
        self._correction: dict[str, Tensor] = {}
        self._sum: dict[str, Tensor] = {}
        self._num_steps = 0
        for name, parameter in model.named_parameters():
            zeros = torch.zeros_like(parameter, requires_grad=False)
            self._own[name] = own[name].to(zeros) if name in own else zeros
            ours = control[name].to(zeros) if name in control else zeros
            self._correction[name] = ours - self._own[name]
            self._sum[name] = torch.zeros_like(zeros)

    def adjust(self, model: nn.Module) -> None:
        """Add up the raw gradients, then correct them."""
        self._num_steps += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self._sum[name] += parameter.grad
                parameter.grad += self._correction[name]

    def finish(self, model: nn.Module) -> tuple[State, State]:  # noqa: ARG002
        """Make the mean gradient the client's control variate; without a step the old one stays."""
        new = self._own
        if self._num_steps:
            new = {name: total / self._num_steps for name, total in self._sum.items()}
        differences = {name: (new[name] - old).cpu() for name, old in self._own.items()}
        return differences, {name: tensor.cpu() for name, tensor in new.items()}
