"""Flow matching and rectified flow as parts of diffkit: arXiv:2210.02747, arXiv:2209.03003."""

from diffkit_flow.euler import FlowEuler as FlowEuler
from diffkit_flow.heun import FlowHeun as FlowHeun
from diffkit_flow.linear import FlowLinear as FlowLinear
from diffkit_flow.logit_normal import FlowLogitNormal as FlowLogitNormal
from diffkit_flow.velocity import Flow as Flow

__all__ = ["Flow", "FlowEuler", "FlowHeun", "FlowLinear", "FlowLogitNormal"]
