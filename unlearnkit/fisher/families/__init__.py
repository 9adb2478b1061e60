"""One file per layer family: the formula of its per-sample gradient and the kernels that add its squares."""

from unlearnkit.fisher.families.activation import PReLURule
from unlearnkit.fisher.families.bag import EmbeddingBagRule
from unlearnkit.fisher.families.convolution import ConvolutionRule, TransposedConvolutionRule
from unlearnkit.fisher.families.elementwise import AddRule, DivideRule, MultiplyRule, SubtractRule
from unlearnkit.fisher.families.embedding import EmbeddingRule
from unlearnkit.fisher.families.linear import LinearRule, MatmulRule
from unlearnkit.fisher.families.normalisation import (
    BatchNormRule,
    GroupNormRule,
    InstanceNormRule,
    LayerNormRule,
    RMSNormRule,
)
from unlearnkit.fisher.rule import Rule

BUILTIN: tuple[Rule, ...] = (
    LinearRule(),
    MatmulRule(),
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
