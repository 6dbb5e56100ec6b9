"""Generation of tokens: any model that decodes, samplers that compose, beam search, caches."""

from kattn.generation.beam_search import BeamSearch as BeamSearch
from kattn.generation.cache_policies import FullCache as FullCache
from kattn.generation.cache_policies import Int8Cache as Int8Cache
from kattn.generation.cache_policies import StreamingCache as StreamingCache
from kattn.generation.cache_policies import WindowCache as WindowCache
from kattn.generation.each_step import acts_on_each_step as acts_on_each_step
from kattn.generation.functional_decoder import FunctionalDecoder as FunctionalDecoder
from kattn.generation.generate import generate as generate
from kattn.generation.history import History as History
from kattn.generation.logit_rules import MinP as MinP
from kattn.generation.logit_rules import NoRepeatNGram as NoRepeatNGram
from kattn.generation.logit_rules import RepetitionPenalty as RepetitionPenalty
from kattn.generation.logit_rules import Temperature as Temperature
from kattn.generation.logit_rules import TopK as TopK
from kattn.generation.logit_rules import TopP as TopP
from kattn.generation.prefix_cache import PrefixCache as PrefixCache
from kattn.generation.samplers import GreedySampler as GreedySampler
from kattn.generation.samplers import RandomSampler as RandomSampler
