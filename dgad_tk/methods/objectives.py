"""What the attacks of several methods maximise, each a function of the student under attack."""

from torch import Tensor, nn

from dgad_tk.inner_max import Objective
from dgad_tk.losses import cross_entropy, kl
from dgad_tk.methods.base import ObjectiveOn


def label_loss(y: Tensor) -> ObjectiveOn:
    """CE(s(x'), y) for labels `(N,)` (Madry et al., ICLR 2018, eq. 2.1)."""

    def objective_on(net: nn.Module) -> Objective:
        return lambda images: cross_entropy(net(images), y)

    return objective_on


def discrepancy(teacher: nn.Module) -> ObjectiveOn:
    """KL(T(x')‖S(x')), with a gradient through both networks (AdaAD, CVPR 2023, eq. 5)."""

    def objective_on(net: nn.Module) -> Objective:
        return lambda images: kl(teacher(images), net(images))

    return objective_on
