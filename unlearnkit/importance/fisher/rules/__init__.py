"""One file per layer family: the formula of its per-sample gradient, and the ways to add its squares."""

from unlearnkit.importance.fisher.engine.rule import Rule
from unlearnkit.importance.fisher.rules.convolution import ConvolutionRule, TransposedConvolutionRule
from unlearnkit.importance.fisher.rules.elementwise import AddRule, DivideRule, MultiplyRule, PReLURule, SubtractRule
from unlearnkit.importance.fisher.rules.embedding import EmbeddingBagRule, EmbeddingRule
from unlearnkit.importance.fisher.rules.linear import GroupedRule, LinearRule, MatmulRule
from unlearnkit.importance.fisher.rules.normalisation import (
    BatchNormRule,
    GroupNormRule,
    InstanceNormRule,
    LayerNormRule,
    RMSNormRule,
)

BUILTIN: tuple[Rule, ...] = (
    LinearRule(),
    MatmulRule(),
    GroupedRule(),
    ConvolutionRule(),
    TransposedConvolutionRule(),
    BatchNormRule(),
    GroupNormRule(),
    InstanceNormRule(),
    LayerNormRule(),
    RMSNormRule(),
    EmbeddingRule(),
    EmbeddingBagRule(),
    AddRule(),
    SubtractRule(),
    MultiplyRule(),
    DivideRule(),
    PReLURule(),
)
