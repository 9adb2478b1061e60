"""The laws, one module for each base class; importing this package adds them to `unlearnkit.testing.law.LAWS`."""

from unlearnkit.testing.laws import elementwise, estimator, metric, unlearner  # noqa: F401
