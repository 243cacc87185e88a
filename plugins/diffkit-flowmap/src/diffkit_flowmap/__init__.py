"""One-step models as parts of diffkit: consistency models, MeanFlow, shortcut models, progressive distillation."""

from diffkit_flowmap.consistency import Consistency as Consistency
from diffkit_flowmap.distill import Distill as Distill
from diffkit_flowmap.flow_map import FlowMap as FlowMap
from diffkit_flowmap.level_pairs import FlowMapLevelPairs as FlowMapLevelPairs
from diffkit_flowmap.mean_flow import MeanFlow as MeanFlow
from diffkit_flowmap.pairs import FlowMapPairs as FlowMapPairs
from diffkit_flowmap.shortcut import Shortcut as Shortcut

__all__ = ["Consistency", "Distill", "FlowMap", "FlowMapLevelPairs", "FlowMapPairs", "MeanFlow", "Shortcut"]
