"""Parts found by name: how a name becomes a part.

@registry("schedule").register("logistic")
@frozen
class Logistic(NoiseSchedule): ...
"""

from diffkit.registry.entry_points import BUILT_IN as BUILT_IN
from diffkit.registry.entry_points import LOCAL as LOCAL
from diffkit.registry.entry_points import canonical as canonical
from diffkit.registry.kinds import COMMAND as COMMAND
from diffkit.registry.kinds import KINDS as KINDS
from diffkit.registry.kinds import OFFERED as OFFERED
from diffkit.registry.kinds import SLOTS as SLOTS
from diffkit.registry.kinds import Kind as Kind
from diffkit.registry.listing import describe as describe
from diffkit.registry.lookup import Entry as Entry
from diffkit.registry.lookup import Provenance as Provenance
from diffkit.registry.lookup import Registry as Registry
from diffkit.registry.lookup import faults as faults
from diffkit.registry.lookup import refresh as refresh
from diffkit.registry.lookup import registry as registry
