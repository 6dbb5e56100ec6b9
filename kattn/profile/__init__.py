"""What a model costs, layer by layer: parameters, floating-point operations and bytes."""

from kattn.profile.layer_costs import LayerCost as LayerCost
from kattn.profile.layer_costs import layer_costs as layer_costs
from kattn.profile.parameter_count import parameter_count as parameter_count
