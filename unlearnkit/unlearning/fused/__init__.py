"""The edit of large models in one pass: a rule is translated, compiled once and run over each array once.

`trace` watches the rule and writes down what it does, `operations` says what that may be, `c_plus_plus` writes it in
that language, `kernel` compiles it together with ``one_pass.cpp``, which does for any rule what an edit does around it:
means, comparison, count, the journal's old values, the check that results are finite. `passage` runs it, `run` decides
when, and what is left to torch. Where a rule takes an exp or a log, ``question.cpp`` computes of what, a few pieces at
a time, and torch answers before the pass over these pieces.

On CUDA the same is done in Triton: `device_source` writes the rule and puts it together with ``one_pass.triton``,
`device_kernel` compiles it, `device_passage` runs it in batches.
"""
