"""The conformance kit: checks whether a part obeys the laws of its kind.

    from diffkit.testing import parametrize_checks

    @parametrize_checks("sampler", DDIM(), DDIM(eta=0.5))
    def test_ddim(check): check()

`check_solver` holds a solver that is no part of diffkit to the same laws.

`check_component` returns results instead, `checks_for` lists the laws. Conditions that a network needs and that the kit
cannot generate are passed as ``conditions=``. `oracles` are exact denoisers to test against, `strategies`
are Hypothesis strategies (they need the extra "testing"). The built-in parts are checked the same way.
"""

from diffkit.testing._check import Check as Check
from diffkit.testing._check import CheckResult as CheckResult
from diffkit.testing._check import LawError as LawError
from diffkit.testing._check import NotApplicableError as NotApplicableError
from diffkit.testing._check import Where as Where
from diffkit.testing._run import check_component as check_component
from diffkit.testing._run import checks_for as checks_for
from diffkit.testing._run import parametrize_checks as parametrize_checks
from diffkit.testing._run import report as report
from diffkit.testing._sampler_order import measured_orders as measured_orders
from diffkit.testing._solver import check_solver as check_solver
from diffkit.testing._solver import require_laws as require_laws
from diffkit.testing._solver import solver_times as solver_times
from diffkit.testing._solver import step_solver as step_solver
from diffkit.testing.exact_model import ExactModel as ExactModel
from diffkit.testing.exact_model import TimePath as TimePath
from diffkit.testing.oracles import DiracOracle as DiracOracle
from diffkit.testing.oracles import GaussianOracle as GaussianOracle
from diffkit.testing.oracles import LabelledMixtureOracle as LabelledMixtureOracle
from diffkit.testing.oracles import MixtureOracle as MixtureOracle
from diffkit.testing.oracles import SeparableMixtureOracle as SeparableMixtureOracle
from diffkit.testing.oracles import labelled_network_of as labelled_network_of
from diffkit.testing.oracles import network_of as network_of
